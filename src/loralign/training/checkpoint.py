"""Checkpoints that are whole or absent."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from loralign.errors import StateError
from loralign.files import flush_directory, write_json

MANIFEST = "loralign_checkpoint.json"
_SAVING = ".saving-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def saving_directory(output: Path) -> Path:
    """Where a checkpoint grows before it is given its name; the same on every process."""
    return output / f"{_SAVING}checkpoint"


def clear_unfinished(output: Path) -> None:
    """Remove what an interrupted save left behind."""
    for path in output.glob(f"{_SAVING}*"):
        shutil.rmtree(path)


def save_state(directory: Path, stem: str, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write one part's state into a checkpoint: ``stem.json`` and ``stem.safetensors``."""
    write_json(directory / f"{stem}.json", state)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        directory / f"{stem}.safetensors",
    )


def has_state(directory: Path, stem: str) -> bool:
    """Whether a checkpoint holds the state of the part called ``stem``."""
    return (directory / f"{stem}.json").exists()


def load_state(directory: Path, stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`save_state` wrote.

    Raises:
        StateError: it is missing or damaged.
    """
    try:
        state = json.loads((directory / f"{stem}.json").read_text(encoding="utf-8"))
        return state, load_file(directory / f"{stem}.safetensors")
    except (OSError, ValueError, RuntimeError) as error:
        raise StateError(f"{stem} cannot be read: {error}", place=str(directory)) from error


def publish(source: Path, target: Path) -> None:
    """Give a finished checkpoint its name: list its files, flush everything to the disk, rename."""
    sizes = {str(file.relative_to(source)): file.stat().st_size for file in sorted(source.rglob("*")) if file.is_file()}
    write_json(source / MANIFEST, {"version": 1, "files": sizes})
    for file in source.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    for directory in (source, *(path for path in source.rglob("*") if path.is_dir())):
        flush_directory(directory)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)
    flush_directory(target.parent)


def is_whole(directory: Path) -> bool:
    """Whether a checkpoint has its manifest and every file in it at the size listed."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return all((directory / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def foreign_checkpoints(output: str | Path) -> list[Path]:
    """Checkpoints that another trainer left: under the same kind of name, but without a manifest, in order of steps."""
    found = {
        int(match[1]): path
        for path in Path(output).glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir() and not (path / MANIFEST).exists()
    }
    return [found[step] for step in sorted(found)]


def last_whole_checkpoint(output: str | Path) -> Path | None:
    """The whole checkpoint of the highest step, or ``None``. One whose saving was cut off never counts."""
    output = Path(output)
    steps = {
        int(match[1]): path
        for path in (output.iterdir() if output.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(path.name)) and is_whole(path)
    }
    return steps[max(steps)] if steps else None
