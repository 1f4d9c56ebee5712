"""A run's directory: what is there already, what is written into it."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from loralign.errors import OutputError
from loralign.files import atomic_directory, exists, write_json
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
    # Hidden ones are what a write that was cut off has left, perhaps of the very first file of a run.
    if not output.is_dir() or all(path.name.startswith(".") for path in output.iterdir()):
        return
    if not (run.resume or run.overwrite):
        raise OutputError(
            "exists and is not empty", place=str(output), fix="pass --resume or --overwrite, or choose another"
        )
    if not (output / RUN_FILE).exists() and get_last_checkpoint(str(output)) is None:
        # Resuming a run that has no whole checkpoint begins it anew, so it may clear the directory just as well.
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
        for path in _files(name or ""):
            if inside == path or inside in path.parents:
                raise OutputError(
                    f"holds {name}, which the run needs", place=str(output), fix="choose another output_dir"
                )


def _files(name: str) -> list[Path]:
    """What a name, perhaps with a label before it, stands for on disk: a path, or the matches of a pattern.

    An adapter stands for its base as well, which may be another run's start.
    """
    found: list[Path] = []
    # The whole of it first, since a path may have an equals sign in it; a label has none.
    for place in dict.fromkeys((name, name.partition("=")[2])):
        if place and exists(place):
            found = [Path(place).expanduser().resolve()]
        else:
            found = [Path(one).resolve() for one in glob.glob(os.path.expanduser(place), recursive=True)]  # noqa: PTH111, PTH207
        if found:
            break
    bases = [_base(one) for one in found]
    return found + [Path(base).expanduser().resolve() for base in bases if base and exists(base)]


def _base(adapter: Path) -> str | None:
    """What an adapter calls its base; ``None`` of anything else, which is not judged here."""
    try:
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None


def recipe_file(command: Sequence[str]) -> str | None:
    """The recipe that a command line names, which is an input, too."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == "--config":
            return following
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


def clear(directory: Path) -> None:
    """Empty a directory that an earlier run left."""
    for path in directory.iterdir():
        # A link is taken away and what it leads to left alone.
        if path.is_dir() and not path.is_symlink():
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
    model.peft_config["default"].base_model_name_or_path = base_name
    # The old one goes only when the new one is there.
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_directory(fresh) as temporary:
        model.save_pretrained(str(temporary), selected_adapters=["default"], save_embedding_layers=False)
        tokenizer.save_pretrained(str(temporary))
        for name, content in (records or {}).items():
            write_json(temporary / name, content)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)
