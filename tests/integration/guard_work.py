"""What the child processes of the guard's tests do: train under a guard, and stop where they are to be killed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer

from loralign.training import GuardCallback, GuardConfig, GuardData, checkpoint
from tests.integration import work
from tests.training import guard_runs


@dataclass(frozen=True)
class GuardedRun:
    """One guarded training run; fields as those of :class:`tests.integration.work.Run`."""

    output: Path
    guard: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    resume: bool | str | None = None
    at: str | None = None
    double: bool = False

    def beside(self, ending: str) -> Path:
        return self.output.with_name(f"{self.output.name}.{ending}")

    def log(self) -> str:
        return (self.output / "guard.jsonl").read_text()


def train_guarded(*several: GuardedRun) -> None:
    """Train one run after another and keep what each ends with."""
    for run in several:
        _train(run)


def _train(run: GuardedRun) -> None:
    torch.set_num_threads(1)
    held = guard_runs.subspace()
    data = GuardData(
        probe=guard_runs.completions(6, seed=9),
        alignment=guard_runs.completions(16),
        task=guard_runs.completions(8, seed=5),
    )
    trainer = guard_runs.trainer(
        run.output, GuardConfig(**run.guard), held=held, data=data, double=run.double, **run.options
    )
    if run.at is not None:
        MOMENTS[run.at](trainer, functools.partial(work._wait_for_the_end, run))  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=run.resume)
    if trainer.is_world_process_zero():
        save_file(work._final_state(trainer), run.beside("safetensors"))


def _fourth_directory(_: Any, __: Any, directory: Path) -> bool:
    return directory.name == "checkpoint-4"


MOMENTS = {
    "between steps": work._at_step(5),
    "optimiser half written": work._around(Trainer, "_save_optimizer_and_scheduler", work._cut_optimiser),
    "guard not yet written": work._around(GuardCallback, "save_state", _fourth_directory, before=True),
    "guard written": work._around(GuardCallback, "save_state", _fourth_directory),
    "manifest not yet written": work._around(checkpoint, "write_json", work._manifest_of_fourth, before=True),
}
