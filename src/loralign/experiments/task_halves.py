"""The task's data in two halves without a common row, so that the same recipe can be adapted to either."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from loralign.errors import DataError
from loralign.experiments.cell import CellSettings
from loralign.experiments.contents import identity_digest, known_by_content
from loralign.files import atomic_directory, json_lines
from loralign.runs import parse_adapt_recipe
from loralign.runs.adapt import load_task_split

HALVES = ("first half", "second half")
"""Of the samples that the recipe trains on."""

_HELD_BACK = "held-back.jsonl"
_DECISIVE = ("data", "validation_data", "validation_samples", "split_seed")


def task_halves(base: CellSettings, output: Path) -> dict[str, CellSettings]:
    """What the recipe has on either half of its training samples, by the name of the half.

    The samples that the recipe holds back are taken away first, and both halves are scored on them. The split is by
    ``split_seed``, so that it is the same for all seeds of the training.

    Args:
        base: recipe of ``loralign adapt``.
        output: of the experiment, where the halves are kept.

    Raises:
        DataError: any fault of the data; fewer than two samples to train on.
    """
    identity = {name: known_by_content(base[name]) for name in _DECISIVE}
    target = (output / "halves" / identity_digest(identity)[:16]).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            _write(base, target)
    validation = [str(target / _HELD_BACK)]
    return {half: {"data": [str(target / _file(half))], "validation_data": validation} for half in HALVES}


def _write(base: CellSettings, target: Path) -> None:
    recipe = parse_adapt_recipe([], base)
    train, validation = load_task_split(recipe)
    if len(train) < 2:
        raise DataError(
            f"leaves {len(train)} samples to train on, which cannot be halved", place=", ".join(recipe.run.data)
        )
    parts = train.train_test_split(test_size=0.5, seed=recipe.run.split_seed)
    files = {_file(half): parts[part] for half, part in zip(HALVES, ("train", "test"), strict=True)}
    with atomic_directory(target) as temporary:
        for name, rows in {**files, _HELD_BACK: validation}.items():
            (temporary / name).write_text(json_lines(rows), encoding="utf-8")


def _file(half: str) -> str:
    return f"{half.replace(' ', '-')}.jsonl"
