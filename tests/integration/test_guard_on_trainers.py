"""The guard's callback on trainers that know nothing of it: TRL's SFT, DPO and KTO trainers, and transformers' own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import DPOTrainer, KTOConfig, KTOTrainer, SFTTrainer

from loralign.data.completions import completion_batches
from loralign.guard import update_shares
from loralign.lora import lora_layers
from loralign.training import GuardCallback, GuardConfig, GuardData
from tests.evaluation import models
from tests.training import guard_runs, runs

PROBE = GuardData(probe=guard_runs.completions(6, seed=9))
COMMON = {**runs.SETTINGS, "max_steps": 3}


def _sft(output: Path) -> Any:
    return guard_runs.trainer(output, kind=SFTTrainer, max_steps=3)


def _dpo(output: Path) -> Any:
    dataset = runs.pairs(24).remove_columns("objective")
    return runs.trainer(
        output, kind=DPOTrainer, dataset=dataset, lora={"target_modules": guard_runs.MODULES}, max_steps=3
    )


def _kto(output: Path) -> Any:
    rows = []
    for index, pair in enumerate(runs.pairs(24)):
        rows.append({"prompt": pair["prompt"], "completion": pair["chosen"], "label": bool(index % 2)})
    with warnings.catch_warnings():
        # TRL's own default for a field that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        config = KTOConfig(str(output), max_length=64, **COMMON)
    return KTOTrainer(
        model=models.build("llama"),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=models.character_tokenizer(),
        peft_config=LoraConfig(**guard_runs.LORA),
    )


def _plain(output: Path) -> Any:
    (batch,) = completion_batches(guard_runs.completions(18), 18, 0)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True)
    ]
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments = TrainingArguments(str(output), **COMMON)
    return Trainer(model=model, args=arguments, train_dataset=rows)


TRAINERS: dict[str, Callable[[Path], Any]] = {"sft": _sft, "dpo": _dpo, "kto": _kto, "plain": _plain}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("name", TRAINERS)
def test_guard_holds_the_subspace(tmp_path: Path, name: str) -> None:
    """Held, the part in the subspace stays small; measured only, it grows: with the same trainer and data."""
    held = guard_runs.subspace(rank=6)
    shares = {}
    for label, config in (
        ("measured", GuardConfig(guard_mode="measure", probe_every=1)),
        ("penalised", GuardConfig(lambda_alignment=300.0, lambda_stability=0.0, probe_every=1)),
        ("projected", GuardConfig(guard_mode="project", probe_every=1)),
    ):
        trainer = TRAINERS[name](tmp_path / label)
        GuardCallback(held, config, PROBE).install(trainer)
        trainer.train()
        layers = lora_layers(trainer.model)
        energies = torch.stack([(layer.B @ layer.A).detach().square().sum().double() for layer in layers])
        shares[label] = float((energies * update_shares(layers, held.match(layers))).sum() / energies.sum())
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logged[-1]["drift/kl"] > 0
    assert shares["projected"] < 1e-10
    assert shares["penalised"] < 0.7 * shares["measured"]
