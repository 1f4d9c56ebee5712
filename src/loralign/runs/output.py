"""A run's directory: what is there already, what is written into it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from loralign.errors import OutputError
from loralign.files import atomic_directory, write_json
from loralign.runs.options import RunArguments

RUN_FILE = "run.json"
ADAPTER = "adapter"
START = "start"
SUBSPACE = "subspace"


def check_output(output: Path, run: RunArguments) -> None:
    """Make sure that nothing is overwritten that was not meant to be.

    Raises:
        OutputError: the directory holds something and neither ``resume`` nor ``overwrite`` was asked for, or what it
            holds was not left by an earlier run.
    """
    if output.exists() and not output.is_dir():
        raise OutputError("is a file", place=str(output), fix="choose another output_dir")
    if not output.is_dir() or not any(output.iterdir()) or run.resume:
        return
    if not run.overwrite:
        raise OutputError(
            "exists and is not empty", place=str(output), fix="pass --resume or --overwrite, or choose another"
        )
    if not (output / RUN_FILE).exists() and get_last_checkpoint(str(output)) is None:
        raise OutputError(
            "was not left by an earlier run, so it is not replaced", place=str(output), fix="empty it yourself"
        )


def check_inputs(output: Path, inputs: Iterable[str | None]) -> None:
    """Make sure that clearing ``output`` would not remove what the run needs.

    Args:
        output: the run's directory.
        inputs: names of models, adapters, subspaces and data; those that are no paths do not matter.

    Raises:
        OutputError: one of them lies inside.
    """
    inside = output.resolve()
    for name in inputs:
        path = None if not name else Path(name.rpartition("=")[2]).expanduser()
        if path is not None and path.exists() and (inside == path.resolve() or inside in path.resolve().parents):
            raise OutputError(f"holds {name}, which the run needs", place=str(output), fix="choose another output_dir")


def clear(directory: Path) -> None:
    """Empty a directory that an earlier run left."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def save_adapter(
    model: Any, tokenizer: Any, base_name: str, target: Path, records: Mapping[str, Any] | None = None
) -> None:
    """Write the active adapter as an ordinary PEFT directory, whole or not at all.

    Args:
        model: a PEFT model.
        tokenizer: of its base.
        base_name: what the adapter calls its base.
        target: the directory; replaced where it exists.
        records: JSON files to write beside the weights, by name.
    """
    if target.exists():
        shutil.rmtree(target)
    model.peft_config["default"].base_model_name_or_path = base_name
    with atomic_directory(target) as temporary:
        model.save_pretrained(str(temporary), selected_adapters=["default"], save_embedding_layers=False)
        tokenizer.save_pretrained(str(temporary))
        for name, content in (records or {}).items():
            write_json(temporary / name, content)
