"""What the child processes of these tests do: train, and stop where they are to be killed."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from loralign.errors import OutputError
from loralign.geometry import refinement
from loralign.training import GeometryCallback, GeometryConfig, checkpoint
from tests.evaluation import models
from tests.training import runs

Stop = Callable[[], None]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        output: its directory; what it ends with is written beside it.
        geometry: fields of ``GeometryConfig``.
        options: fields of ``DPOConfig``.
        resume: as for ``Trainer.train``.
        at: a moment of :data:`MOMENTS` at which something happens to the run.
        dropout: of the adapter; with it the run depends on the state of the random generators too.
        double: compute in float64.
    """

    output: Path
    geometry: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    resume: bool | str | None = None
    at: str | None = None
    dropout: float = 0.0
    double: bool = False

    def beside(self, ending: str) -> Path:
        return self.output.with_name(f"{self.output.name}.{ending}")

    def state(self) -> dict[str, torch.Tensor]:
        """The factors and moments that the run ended with."""
        state: dict[str, torch.Tensor] = load_file(self.beside("safetensors"))
        return state

    def log(self) -> bytes:
        return (self.output / "geometry.jsonl").read_bytes()

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def train(*several: Run) -> None:
    """Train one run after another and keep what each ends with."""
    for run in several:
        _train(run, functools.partial(_wait_for_the_end, run))


def train_with_little_room(run: Run, room: int) -> None:
    """Train; from the moment ``run.at`` on no file may grow beyond ``room`` bytes, as if the disk were full."""
    said = [os.dup(1), os.dup(2)]

    def fill() -> None:
        # Python ignores the signal that comes with it, so every write beyond fails with an error, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        silence = os.open(os.devnull, os.O_WRONLY)  # what the process says goes to a file too
        os.dup2(silence, 1)
        os.dup2(silence, 2)

    try:
        _train(run, fill)
    except OutputError as error:
        refused = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for number, descriptor in enumerate(said, start=1):
            os.dup2(descriptor, number)
    run.beside("error").write_text(refused)


def train_with_snapshots(run: Run, snapshots: Path) -> None:
    """Train; from the moment ``run.at`` on copy the output directory before every change of the file system."""
    torch.set_num_threads(1)
    watching = False

    def begin() -> None:
        nonlocal watching
        watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal watching
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod") or (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if watching and changes:
            watching = False
            shutil.copytree(run.output, snapshots / f"{len(list(snapshots.iterdir())):04}")
            watching = True

    snapshots.mkdir()
    sys.addaudithook(hook)
    _train(run, begin)
    watching = False


def _train(run: Run, happening: Stop) -> None:
    torch.set_num_threads(1)
    extra: dict[str, Any] = {"model": models.build("llama", dtype=torch.float64)} if run.double else {}
    if "preservation_weight" in run.geometry:
        texts = [{"messages": row["prompt"] + row["chosen"]} for row in runs.pairs(8)]
        extra["preservation_dataset"] = Dataset.from_list(texts)
    trainer = runs.trainer(
        run.output,
        GeometryConfig(**run.geometry),
        lora={"lora_dropout": run.dropout},
        extra=extra,
        disable_dropout=False,
        **run.options,
    )
    if run.at is not None:
        MOMENTS[run.at](trainer, happening)
    trainer.train(resume_from_checkpoint=run.resume)
    if trainer.is_world_process_zero():
        save_file(_final_state(trainer), run.beside("safetensors"))


def _final_state(trainer: Any) -> dict[str, torch.Tensor]:
    """Every number that the rest of a run would depend on: the factors and their moments."""
    state = runs.adapter(trainer)
    for index, one in trainer.optimizer.state_dict()["state"].items():
        state |= {f"moment.{index}.{key}": torch.as_tensor(value).clone() for key, value in one.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _wait_for_the_end(run: Run) -> None:
    run.beside("reached").touch()
    time.sleep(600)


def _at_step(step: int, name: str = "on_step_end") -> Callable[[Any, Stop], None]:
    def arrange(trainer: Any, happening: Stop) -> None:
        def event(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                happening()

        trainer.add_callback(type("AtStep", (TrainerCallback,), {name: event})())

    return arrange


def _around(owner: Any, name: str, when: Callable[..., bool], before: bool = False) -> Callable[[Any, Stop], None]:
    """Something happens after, or before, the call of a function for which ``when(trainer, *arguments)`` holds."""

    def arrange(trainer: Any, happening: Stop) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if before and when(trainer, *args):
                happening()
            result = original(*args, **kwargs)
            if not before and when(trainer, *args):
                happening()
            return result

        setattr(owner, name, replaced)

    return arrange


def _saving_fourth(trainer: Any, *_: Any) -> bool:
    return bool(trainer.state.global_step == 4)


def _fourth_named(trainer: Any, directory: Path) -> bool:
    # Its own directories are flushed before it has its name.
    return (directory / "checkpoint-4").exists()


def _cut_optimiser(trainer: Any, _: Any, directory: str) -> bool:
    file = Path(directory) / "optimizer.pt"
    if trainer.state.global_step == 4:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return bool(trainer.state.global_step == 4)


def _manifest_of_fourth(trainer: Any, path: Path, *_: Any) -> bool:
    return path.name == checkpoint.MANIFEST and path.parent.name == "checkpoint-4"


def _third_layer(trainer: Any, *_: Any) -> bool:
    if trainer.state.global_step != 5:
        return False
    trainer.layers_refined = getattr(trainer, "layers_refined", 0) + 1
    return bool(trainer.layers_refined == 3)


MOMENTS: dict[str, Callable[[Any, Stop], None]] = {
    "before the first save": _at_step(1),
    "between steps": _at_step(5),
    "inside a step": _at_step(5, "on_pre_optimizer_step"),
    "before the fourth save": _at_step(4),
    "before the sixth save": _at_step(6),
    "before the log is written": _at_step(3, "on_step_begin"),
    "adapter written": _around(Trainer, "_save_optimizer_and_scheduler", _saving_fourth, before=True),
    "optimiser half written": _around(Trainer, "_save_optimizer_and_scheduler", _cut_optimiser),
    "geometry not yet written": _around(GeometryCallback, "save_state", _saving_fourth, before=True),
    "geometry written": _around(GeometryCallback, "save_state", _saving_fourth),
    "manifest not yet written": _around(checkpoint, "write_json", _manifest_of_fourth, before=True),
    "manifest written": _around(checkpoint, "write_json", _manifest_of_fourth),
    "named but not flushed": _around(checkpoint, "flush_directory", _fourth_named, before=True),
    "half of the layers refined": _around(refinement, "_refine_layer", _third_layer),
}
