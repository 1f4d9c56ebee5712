"""The tables that every form of the report shows: arms with their scores, and refusals by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loralign.report.format import ABSENT, count, significant
from loralign.report.intervals import interval, percent_interval
from loralign.report.records import Metric
from loralign.report.runs.combining import Arm
from loralign.report.runs.records import Category, Ground, Quantity, Score
from loralign.report.theme import Table

Column = tuple[Quantity, Ground]

_ORDER = ("task", "preference", "refusal", "over_refusal", "toxicity", "kl", "drift_reduction")
"""Kinds of quantities, by the beginning of their keys, from left to right."""


def columns(arms: Sequence[Arm]) -> list[Column]:
    """Return what any arm was scored on: tasks first, then what was kept or lost; shared grounds before own ones."""
    found = dict.fromkeys((score.quantity, score.ground) for arm in arms for score in arm.scores)
    return sorted(found, key=lambda column: (_place(column[0].key), column[1].name.startswith("own")))


def _place(key: str) -> int:
    return next((place for place, kind in enumerate(_ORDER) if key.startswith(kind)), len(_ORDER))


def heading(column: Column, known: Sequence[Column]) -> str:
    """Return what a column is called: the quantity and its ground, whose detail tells it from others of its name."""
    quantity, ground = column
    names = Counter((other.key, place.name) for other, place in known)
    detail = f", {ground.detail}" if ground.detail and names[quantity.key, ground.name] > 1 else ""
    return f"{quantity.title}{f' on {ground.name}' if ground.name else ''}{detail}"


def value_text(metric: Metric, quantity: Quantity) -> str:
    """Return a value with its interval, shares in percent."""
    return percent_interval(metric) if quantity.unit == "share" else interval(metric)


def score_text(score: Score) -> str:
    """Return a score with its interval."""
    return value_text(score.metric, score.quantity)


def arms_table(arms: Sequence[Arm]) -> Table:
    """Return one column per arm: what it is, and under it every score with its interval."""
    known = columns(arms)
    by_arm = [{(score.quantity, score.ground): score for score in arm.scores} for arm in arms]
    rows = [
        (heading(column, known), *(score_text(found[column]) if column in found else ABSENT for found in by_arm))
        for column in known
    ]
    roles = ("what it is", *(arm.role or ABSENT for arm in arms))
    return Table(("score", *(arm.name for arm in arms)), (roles, *rows))


def changes_table(arms: Sequence[Arm]) -> Table:
    """Return what every arm with a start gained and lost against it: one column per arm, one row per score."""
    known = columns(arms)
    tuned = [arm for arm in arms if arm.reference is not None and any(score.change for score in arm.scores)]
    by_arm = [{(one.quantity, one.ground): one.change for one in arm.scores if one.change} for arm in tuned]
    rows = [
        (heading(column, known), *(change_text(found.get(column), column[0]) or ABSENT for found in by_arm))
        for column in known
        if any(column in found for found in by_arm)
    ]
    starts = ("against", *(arm.reference or ABSENT for arm in tuned))
    return Table(("change", *(arm.name for arm in tuned)), (starts, *rows) if rows else ())


def change_text(change: Metric | None, quantity: Quantity) -> str:
    """Return a change with its interval, shares in points; empty where there is none."""
    if change is None or change.value is None:
        return ""
    if quantity.unit != "share":
        return interval(change)
    ends = [significant(100 * end) for end in (change.low, change.high) if end is not None]
    span = f" [{', '.join(ends)}]" if len(ends) == 2 else ""
    return f"{significant(100 * change.value)} points{span}"


def category_groups(arms: Sequence[Arm]) -> list[tuple[Quantity, Ground, list[tuple[str, Category]]]]:
    """Return the scores by category with their arms' names, one group for each quantity and ground."""
    groups: dict[tuple[Quantity, Ground], list[tuple[str, Category]]] = {}
    for arm in arms:
        for one in arm.categories:
            groups.setdefault((one.quantity, one.ground), []).append((arm.name, one))
    ordered = sorted(groups.items(), key=lambda item: (_place(item[0][0].key), item[0][1].name.startswith("own")))
    return [(quantity, ground, found) for (quantity, ground), found in ordered]


def category_table(quantity: Quantity, found: Sequence[tuple[str, Category]]) -> Table:
    """Return one row per category and one column per arm."""
    names = list(dict.fromkeys(name for name, _ in found))
    several = len({one.label for _, one in found}) > 1
    cells = {(one.label, one.category, name): one for name, one in found}
    rows = []
    for label, category in dict.fromkeys((one.label, one.category) for _, one in found):
        here = [cells.get((label, category, name)) for name in names]
        prompts = next((one.prompts for one in here if one is not None and one.prompts is not None), None)
        texts = [ABSENT if one is None else value_text(one.metric, quantity) for one in here]
        rows.append((f"{category} ({label})" if several else category, count(prompts), *texts))
    return Table(("category", "prompts", *names), tuple(rows))
