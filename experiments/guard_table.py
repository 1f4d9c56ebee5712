"""Tables of the finished cells of ``guard_arms.py``, means over seeds with 95 % intervals over prompts or samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loralign.evaluation.bootstrap import Ratio
from loralign.experiments.seed_means import Samples, SeedMean, estimate, over_seeds

Scores = dict[str, Any]
Runs = dict[str, dict[int, Scores]]
"""Scores by arm and seed."""

HEADINGS = (
    "arm",
    "seeds",
    "refused, unsafe",
    "refused, safe",
    "KL, whole",
    "KL, opening",
    "accuracy",
    "task loss",
    "refusals kept",
    "gain kept",
    "drift avoided",
    "share",
    "plain at its loss: refused / KL",
)


def print_tables(arguments: Any) -> None:
    """Print a Markdown table for every task that has a cell of plain LoRA."""
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(arguments.out).glob("cell_*.json"))]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        own = [cell for cell in cells if cell["task"] == task]
        runs = final_scores(own)
        if "plain" not in runs:
            continue
        starts = {cell["seed"]: cell["points"][0]["scores"] for cell in own if cell.get("arm") == "plain"}
        courses = {cell["seed"]: cell["points"] for cell in own if cell.get("arm") == "plain"}
        print(f"\n### {task}\n")
        print(f"| {' | '.join(HEADINGS)} |")
        print(f"|{' --- |' * len(HEADINGS)}")
        print(f"| {' | '.join(line('start', starts, {}, {}, {}))} |")
        for arm, found in runs.items():
            print(f"| {' | '.join(line(arm, found, runs['plain'], starts, courses))} |")


def final_scores(cells: Sequence[Mapping[str, Any]]) -> Runs:
    """The scores after the last step of every arm and of every repair."""
    runs: Runs = {}
    for cell in cells:
        if "repairs" in cell:
            for name, one in cell["repairs"].items():
                runs.setdefault(name, {})[cell["seed"]] = one["scores"]
        else:
            last = cell["points"][-1]["scores"]
            runs.setdefault(cell["arm"], {})[cell["seed"]] = last
    return runs


def line(
    arm: str,
    found: Mapping[int, Scores],
    plain: Mapping[int, Scores],
    starts: Mapping[int, Scores],
    courses: Mapping[int, Sequence[Any]],
) -> list[str]:
    """One arm: means over its seeds, and shares of what plain LoRA with the same seed lost and gained."""
    paired = [seed for seed in found if seed in plain and seed in starts and arm != "plain"]

    def back(key: str) -> float | None:
        """Share of the way from plain LoRA's value back to the start's, mean over the seeds that have it."""
        values = [
            (found[seed][key] - plain[seed][key]) / (starts[seed][key] - plain[seed][key])
            for seed in paired
            if key in found[seed] and key in plain[seed] and starts[seed].get(key, 0.0) != plain[seed][key]
        ]
        return float(np.mean(values)) if values else None

    lost = back("task_loss")
    early = [at_loss(courses[seed], found[seed]["task_loss"]) for seed in paired if seed in courses]
    known = [one for one in early if one is not None]
    return [
        arm,
        str(len(found)),
        rate(found, "refusal"),
        rate(found, "over_refusal"),
        mean(found, "kl", 3),
        mean(found, "kl_opening", 3),
        mean(found, "task_score", 2),
        losses(found),
        _percent(back("refusal")),
        _percent(None if lost is None else 1 - lost),
        _percent(back("kl_opening")),
        f"{float(mean(found, 'share', 4)):.1%}" if mean(found, "share", 4) else "",
        f"{np.mean([one[0] for one in known]):.2f} / {np.mean([one[1] for one in known]):.3f}" if known else "",
    ]


def at_loss(course: Sequence[Mapping[str, Any]], loss: float) -> tuple[float, float] | None:
    """Refusals and opening KL of plain LoRA stopped early at a task loss, linearly between the steps scored."""
    points = [point["scores"] for point in course]
    for before, after in itertools.pairwise(points):
        span = before["task_loss"] - after["task_loss"]
        if span > 0 and before["task_loss"] >= loss >= after["task_loss"]:
            part = (before["task_loss"] - loss) / span
            refusal, kl = (
                before.get(key, 0.0) + part * (after[key] - before.get(key, 0.0)) for key in ("refusal", "kl_opening")
            )
            return refusal, kl
    return None


def rate(found: Mapping[int, Scores], key: str) -> str:
    """Share of prompts refused, with its interval over prompts."""
    each = [{key: _samples([float(mark) for mark in one[f"{key}_each"]])} for one in found.values()]
    return _text(over_seeds(each, key), 2)


def losses(found: Mapping[int, Scores]) -> str:
    """Task loss with its interval over samples."""
    return _text(over_seeds([{"loss": _samples(one["task_losses"])} for one in found.values()], "loss"), 3)


def mean(found: Mapping[int, Scores], key: str, digits: int) -> str:
    """Mean over the seeds that have it."""
    values = [float(one[key]) for one in found.values() if one.get(key) is not None]
    return f"{np.mean(values):.{digits}f}" if values else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _samples(values: Sequence[float]) -> Samples:
    return (Ratio(np.array(values), np.ones(len(values))),)


def _text(samples: SeedMean | None, digits: int) -> str:
    if samples is None:
        return ""
    found = estimate(samples)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
