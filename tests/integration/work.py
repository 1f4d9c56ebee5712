"""What the child processes of these tests do: train, and stop where they are to be killed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback

from loralign.geometry import refinement
from loralign.training import GeometryConfig, checkpoint
from tests.training import runs


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        output: its directory; what it ends with is written beside it.
        geometry: fields of ``GeometryConfig``.
        options: fields of ``DPOConfig``.
        resume: as for ``Trainer.train``.
        stop: the moment at which to stop and wait for the end, see :data:`MOMENTS`.
    """

    output: Path
    geometry: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    resume: bool | str | None = None
    stop: str | None = None

    @property
    def result(self) -> Path:
        return self.output.with_name(f"{self.output.name}.safetensors")

    @property
    def reached(self) -> Path:
        return self.output.with_name(f"{self.output.name}.reached")


def train(run: Run) -> None:
    """Train and keep the adapter and the optimiser's moments."""
    torch.set_num_threads(1)
    trainer = build(run)
    if run.stop is not None:
        MOMENTS[run.stop](trainer, functools.partial(_stop, run))
    trainer.train(resume_from_checkpoint=run.resume)
    if trainer.is_world_process_zero():
        save_file(final_state(trainer), run.result)


def build(run: Run) -> Any:
    # Dropout makes the run depend on the state of the random generators too.
    return runs.trainer(run.output, GeometryConfig(**run.geometry), lora={"lora_dropout": 0.1}, **run.options)


def final_state(trainer: Any) -> dict[str, torch.Tensor]:
    """Every number that the rest of a run would depend on: the factors and their moments."""
    state = runs.adapter(trainer)
    for index, one in trainer.optimizer.state_dict()["state"].items():
        state |= {f"moment.{index}.{key}": torch.as_tensor(value).clone() for key, value in one.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _stop(run: Run) -> None:
    run.reached.touch()
    time.sleep(600)


class _Between(TrainerCallback):
    def __init__(self, step: int, stop: Callable[[], None]) -> None:
        self.step = step
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.stop()


def _between_steps(trainer: Any, stop: Callable[[], None], step: int = 5) -> None:
    trainer.add_callback(_Between(step, stop))


def _after(owner: Any, name: str, when: Callable[..., bool], stop: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if when(*args):
            stop()
        return result

    setattr(owner, name, replaced)


def _optimiser_written(trainer: Any, stop: Callable[[], None]) -> None:
    _after(Trainer, "_save_optimizer_and_scheduler", lambda self, _: self.state.global_step == 4, stop)


def _optimiser_half_written(trainer: Any, stop: Callable[[], None]) -> None:
    def cut(self: Any, directory: str) -> bool:
        file = Path(directory) / "optimizer.pt"
        if self.state.global_step == 4:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return bool(self.state.global_step == 4)

    _after(Trainer, "_save_optimizer_and_scheduler", cut, stop)


def _listed(trainer: Any, stop: Callable[[], None]) -> None:
    _after(
        checkpoint,
        "write_json",
        lambda path, _: path.name == checkpoint.MANIFEST and path.parent.name == "checkpoint-4",
        stop,
    )


def _named(trainer: Any, stop: Callable[[], None]) -> None:
    _after(checkpoint, "flush_directory", lambda parent: (parent / "checkpoint-4").exists(), stop)


def _refining(trainer: Any, stop: Callable[[], None]) -> None:
    half = len(trainer.geometry_callback.engine.capture.layers) // 2 if trainer.geometry_callback.engine else 3
    calls = iter(range(1_000_000))
    # Six layers: the second refinement, after half of them.
    _after(refinement, "_refine_layer", lambda *_: next(calls) == 6 + half - 1, stop)


MOMENTS: dict[str, Callable[[Any, Callable[[], None]], None]] = {
    "between steps": _between_steps,
    "before the first save": functools.partial(_between_steps, step=1),
    "optimiser written": _optimiser_written,
    "optimiser half written": _optimiser_half_written,
    "manifest written": _listed,
    "named, not yet flushed": _named,
    "half of the layers refined": _refining,
}
