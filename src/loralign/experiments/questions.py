"""Where an experiment's results go: those of another question never take the place of those that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from loralign.experiments.contents import identity_digest
from loralign.files import write_json

RESULTS_DIRECTORY = "results"
QUESTION_FILE = "question.json"
_DIGITS = 8
_VERSION = 1


def question(
    own: Mapping[str, Any], seeds: tuple[int, ...], base: Mapping[str, Any], accelerate: str | None = None
) -> str:
    """The fingerprint of what an experiment was asked: its arms by its own settings, its seeds and its recipe.

    What is measured is no part of it: asked again with more measures, a question gets a fuller answer.

    Args:
        own: settings of the experiment itself, files known by their contents.
        seeds: of every arm, in any order.
        base: recipe of every cell, likewise.
        accelerate: words that every cell is launched with, since the number of processes is part of the batch.

    Returns:
        Hexadecimal.
    """
    identity = {"own": own, "seeds": sorted(seeds), "base": base, "accelerate": accelerate}
    return identity_digest(identity, default=str)


def results_directory(output: Path, name: str, asked: str) -> Path:
    """The directory of a question's results, taken now unless it was before.

    The first question under a name has ``results/NAME``, every other one ``results/NAME-`` and the first digits of its
    fingerprint. Results that do not say what they answer are of another question. Workers that ask the same at once
    get the same directory.

    Args:
        output: of the experiment.
        name: of the experiment.
        asked: of :func:`question`.

    Raises:
        OutputError: it cannot be written.
    """
    plain = output / RESULTS_DIRECTORY / name
    own = plain.with_name(f"{name}-{asked[:_DIGITS]}")
    plain.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(plain.with_name(f"{name}.lock")):
        taken = plain.is_dir() and any(plain.iterdir()) and _answered(plain) != asked
        chosen = own if taken or own.is_dir() else plain
        if _answered(chosen) != asked:
            write_json(chosen / QUESTION_FILE, {"version": _VERSION, "kind": "question", "fingerprint": asked})
    return chosen


def _answered(directory: Path) -> str | None:
    """The fingerprint of the question whose results are there; ``None`` where there are none or they do not say."""
    try:
        found = json.loads((directory / QUESTION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found.get("fingerprint")) if isinstance(found, dict) else None
