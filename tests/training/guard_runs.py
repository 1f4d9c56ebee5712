"""Small guarded runs on the tiny Llama: subspace, probe and trainers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from loralign.data.completions import Completion, tokenise_completions
from loralign.guard import AlignmentSubspace, estimate_fisher
from loralign.training import GuardConfig, GuardData, GuardedSFTTrainer
from tests.evaluation import models
from tests.training import runs

MODULES = ["q_proj", "o_proj", "down_proj"]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": MODULES, "task_type": "CAUSAL_LM"}


def samples(count: int = 24, seed: int = 0) -> Dataset:
    """Prompts with completions of random short words."""
    pairs = runs.pairs(count, seed)
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": "unsafe" if index % 2 else "safe"}
            for index, row in enumerate(pairs)
        ]
    )


def completions(count: int = 12, seed: int = 7) -> list[Completion]:
    found: list[Completion] = tokenise_completions(samples(count, seed), models.character_tokenizer(), 64)
    return found


def subspace(rank: int = 3, count: int = 16, **options: Any) -> AlignmentSubspace:
    """Of the tiny Llama that :func:`trainer` trains."""
    return estimate_fisher(
        models.build("llama"),
        completions(count),
        rank=rank,
        target_modules=MODULES,
        min_agreement=0.0,
        show_progress=False,
        **options,
    )


def sft_config(output: Path, **options: Any) -> SFTConfig:
    settings = {**runs.SETTINGS, "output_dir": str(output), "max_length": 64}
    with warnings.catch_warnings():
        # TRL's own default for a field that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return SFTConfig(**{**settings, **options})


def trainer(
    output: Path,
    guard: GuardConfig | None = None,
    *,
    kind: type[SFTTrainer] = GuardedSFTTrainer,
    held: AlignmentSubspace | None = None,
    data: GuardData | None = None,
    callbacks: list[Any] | None = None,
    double: bool = False,
    lora: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    model = models.build("llama")
    settings: dict[str, Any] = {
        "model": model.double() if double else model,
        "args": sft_config(output, **options),
        "train_dataset": samples().remove_columns("label"),
        "processing_class": models.character_tokenizer(),
        "peft_config": LoraConfig(**{**LORA, **(lora or {})}),
        "callbacks": callbacks,
    }
    if kind is GuardedSFTTrainer:
        settings |= {"subspace": held, "guard": guard, "guard_data": data}
    return kind(**settings)


def train(one: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Train and return the factors."""
    one.train(**options)
    return runs.adapter(one)


STRONG = {"lambda_alignment": 30.0, "lambda_stability": 3.0, "lambda_collision": 10.0}
PROBE = GuardData(probe=completions(6, seed=9))


def records(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = (directory / "guard.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control
