"""Small training runs on the tiny Llama and character pairs of the evaluation tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from loralign.training import GeometryConfig, MultiObjectiveDPOTrainer
from tests.evaluation import models

OBJECTIVES = ("helpful", "honest", "harmless")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def pairs(count: int = 24, seed: int = 0) -> Dataset:
    """Labelled pairs of random short words, the objectives in unequal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def text(words: int) -> str:
        letters = torch.randint(97, 123, (words, 4), generator=generator).tolist()
        return " ".join("".join(map(chr, word)) for word in letters)

    rows = []
    for index in range(count):
        label = OBJECTIVES[0 if index % 2 else 1 + (index // 2) % 2]
        rows.append(
            {
                "prompt": [{"role": "user", "content": text(2 + index % 2)}],
                "chosen": [{"role": "assistant", "content": text(2 + index % 3)}],
                "rejected": [{"role": "assistant", "content": text(2 + (index + 1) % 3)}],
                "objective": label,
            }
        )
    return Dataset.from_list(rows)


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 6,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "lr_scheduler_type": "constant",
    "dataloader_pin_memory": False,
    "seed": 3,
}
"""Of every tiny training."""


def dpo_config(output: Path, **options: Any) -> DPOConfig:
    settings = {**SETTINGS, "output_dir": str(output), "per_device_eval_batch_size": 6, "max_length": 64}
    with warnings.catch_warnings():
        # TRL's own default for a field that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return DPOConfig(**{**settings, **options})


def trainer(
    output: Path,
    geometry: GeometryConfig | None = None,
    *,
    kind: type[DPOTrainer] = MultiObjectiveDPOTrainer,
    architecture: str = "llama",
    dataset: Dataset | None = None,
    lora: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    settings: dict[str, Any] = {
        "model": models.build(architecture),
        "args": dpo_config(output, **options),
        "train_dataset": pairs() if dataset is None else dataset,
        "processing_class": models.character_tokenizer(),
        "peft_config": LoraConfig(**{**LORA, **(lora or {})}),
        **(extra or {}),
    }
    if kind is MultiObjectiveDPOTrainer:
        settings |= {"geometry": geometry, "objectives": OBJECTIVES}
    return kind(**settings)


def adapter(one: Any) -> dict[str, torch.Tensor]:
    """The trained factors by name."""
    return {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}
