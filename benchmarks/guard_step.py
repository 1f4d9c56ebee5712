"""Time of a guarded SFT step as a ratio to the same step without a guard.

SmolLM2-135M, 16 samples × 128 tokens, LoRA of rank 16 on all linear layers, a subspace of 32 directions per layer. In
every repeat each arm runs once, on the same batch and in a new random order; a ratio is the median over repeats of the
quotients within a repeat::

    python benchmarks/guard_step.py --repeats 15

The arms:

- ``plain``: one step of TRL's ``SFTTrainer``.
- ``all terms``: with alignment, stability, Riemannian overlap and geodesic penalties.
- ``rows``: the same, the overlap estimated on a quarter of the rows.
- ``factored``: the terms that are computed on the factors: all but the overlap.
- ``project``: no penalty, but the part in the subspace taken out after the step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from arms import LENGTH, TRAINING, add_model_options, describe
from loralign.data import load_alignment_data, tokenise_completions
from loralign.guard import AlignmentSubspace, estimate_fisher
from loralign.lora import lora_layers
from loralign.models import load_model
from loralign.training import GuardCallback, GuardConfig
from ratios import Comparison, add_output_options, compare, positive, show
from timing import Clock, interleave

SAMPLES = 16
BATCHES = 4
DIRECTIONS = 32
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "all terms": {},
    "rows": {"overlap_rows": 0.25},
    "factored": {"collision_alpha": 0.0},
    "project": {"guard_mode": "project"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=15)
    parser.add_argument("--warmup", type=positive, default=2, help="repeats that are not counted")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's CPU seconds")
    add_model_options(parser)
    add_output_options(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        trainer, subspace = make_trainer(arguments, Path(directory))
        batches = make_batches(trainer)
        # A fresh adapter has no update to penalise.
        for batch in batches[:2]:
            step(trainer, None, batch, 0)
        clock = Clock(cpu=arguments.cpu_time)
        runs: dict[str, Callable[[int], None]] = {}
        for name, options in ARMS.items():
            callback = None if options is None else guard(trainer, subspace, options)
            runs[name] = partial(run_arm, trainer, callback, batches)
        settings = {**describe(arguments), "samples": SAMPLES, "length": LENGTH, "directions": DIRECTIONS}
        interleave(clock, runs, repeats=arguments.repeats, warmup=arguments.warmup, seed=arguments.seed)
    for unused in ("pairs", "sketch size", "reference"):
        settings.pop(unused)
    settings |= {"repeats": arguments.repeats, "unit": "CPU s" if arguments.cpu_time else "s"}
    show(arguments, table(clock.samples), dict(clock.samples), settings)


def make_trainer(arguments: argparse.Namespace, directory: Path) -> tuple[SFTTrainer, AlignmentSubspace]:
    """TRL's trainer made ready to step, and a subspace of its model."""
    loaded = load_model(arguments.model)
    # The trainer moves it as well, but only after the estimate.
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    kept = load_alignment_data("builtin", split="train")
    samples = tokenise_completions(kept.shuffle(seed=0).select(range(24)), loaded.tokenizer, LENGTH)
    subspace = estimate_fisher(loaded.model, samples, rank=DIRECTIONS, max_length=LENGTH, min_agreement=0.0)
    trainer = SFTTrainer(
        model=loaded.model,
        args=SFTConfig(
            output_dir=str(directory),
            per_device_train_batch_size=SAMPLES,
            gradient_checkpointing=arguments.gradient_checkpointing,
            seed=arguments.seed,
            **TRAINING,
        ),
        train_dataset=kept.select_columns(["prompt", "completion"]),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=trainer.args.max_steps)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer, subspace


def make_batches(trainer: SFTTrainer) -> list[dict[str, torch.Tensor]]:
    """Collated batches of 16 × 128 tokens; shorter samples are repeated until they fill the length."""
    rows = trainer.train_dataset
    batches = []
    for start in range(0, SAMPLES * BATCHES, SAMPLES):
        examples = [
            {key: _filled(value) for key, value in rows[index].items()} for index in range(start, start + SAMPLES)
        ]
        batch = {key: value.to(trainer.args.device) for key, value in trainer.data_collator(examples).items()}
        if batch["input_ids"].shape != (SAMPLES, LENGTH):
            raise RuntimeError(f"a batch has shape {tuple(batch['input_ids'].shape)}")
        batches.append(batch)
    return batches


def guard(trainer: SFTTrainer, subspace: AlignmentSubspace, options: dict[str, Any]) -> GuardCallback:
    """A guard on the trainer's model whose callbacks are called by hand."""
    callback = GuardCallback(subspace, GuardConfig(probe_every=0, reestimate_every=0, **options))
    layers = lora_layers(trainer.model)
    held = [layer.B.detach().clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.B.zero_()
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    with torch.no_grad():
        for layer, factor in zip(layers, held, strict=True):
            layer.B.copy_(factor)
    return callback


def run_arm(
    trainer: SFTTrainer, callback: GuardCallback | None, batches: list[dict[str, torch.Tensor]], repeat: int
) -> None:
    """One step on this repeat's batch."""
    step(trainer, callback, batches[repeat % len(batches)], repeat)


def step(trainer: SFTTrainer, callback: GuardCallback | None, batch: dict[str, torch.Tensor], number: int) -> None:
    """One optimiser step as transformers' training loop makes it, the guard's callbacks and clipping included."""
    handler, args, state, control = trainer.callback_handler, trainer.args, trainer.state, trainer.control
    state.global_step = number
    handler.on_step_begin(args, state, control)
    if callback is not None:
        callback.on_step_begin(args, state, control)
    trainer.training_step(trainer.model, dict(batch))
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), args.max_grad_norm)
    if callback is not None:
        callback.on_pre_optimizer_step(args, state, control)
    trainer.optimizer.step()
    if callback is not None:
        callback.on_optimizer_step(args, state, control, optimizer=trainer.optimizer)
    trainer.lr_scheduler.step()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()


def table(samples: dict[str, list[float]]) -> list[Comparison]:
    """The ratios that have a target."""
    plain = samples["plain"]
    return [
        compare("guarded step, all terms / plain step", samples["all terms"], plain, 1.15),
        compare("guarded step without the Riemannian term / plain step", samples["factored"], plain, 1.03),
        compare("guarded step, overlap on a quarter of the rows / plain step", samples["rows"], plain),
        compare("step with projection / plain step", samples["project"], plain),
    ]


def _filled(values: Any) -> Any:
    if not isinstance(values, list):
        return values
    return (values * (LENGTH // len(values) + 1))[:LENGTH]


if __name__ == "__main__":
    main()
