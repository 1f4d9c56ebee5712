"""Putting together what several directories say of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isclose

from loralign.report.format import listing
from loralign.report.runs.differences import difference
from loralign.report.runs.records import Answers, Category, Curve, LayerMap, Part, Score
from loralign.report.runs.subjects import Subject, distinct_names, same, subject_name

START = "start"


@dataclass(frozen=True)
class Arm:
    """One model of the report.

    Attributes:
        name: unique in the report.
        role: what it is.
        reference: the arm that it is compared with; ``None`` where nothing names one.
        scores: at most one of a quantity on a ground.
        categories, curves, layer_maps, answers: see :class:`~loralign.report.runs.records.Part`.
    """

    name: str
    role: str
    reference: str | None
    scores: tuple[Score, ...]
    categories: tuple[Category, ...] = ()
    curves: tuple[Curve, ...] = ()
    layer_maps: tuple[LayerMap, ...] = ()
    answers: tuple[Answers, ...] = ()

    def score(self, key: str, ground: str | None = None) -> Score | None:
        """Return the score of a quantity, the first whose ground begins with ``ground``."""
        return next((s for s in self.scores if s.quantity.key == key and s.ground.name.startswith(ground or "")), None)


@dataclass
class _Group:
    """The parts of one model so far."""

    subjects: tuple[Subject, ...]
    parts: list[Part] = field(default_factory=list)


def combine(parts: Sequence[Part]) -> tuple[list[Arm], dict[int, str], list[str]]:
    """Return the arms, starts before what is compared with them, otherwise in the order of the parts.

    Args:
        parts: of all places.

    Returns:
        The arms; the name of every part's arm, by the part's index; and notes on what was measured more than once.
    """
    groups: list[_Group] = []
    chosen: list[_Group] = []
    for part in parts:
        group = _find([one for one in groups if not _apart(one, part)], part.subjects)
        if group is None:
            group = _Group(())
            groups.append(group)
        group.subjects += tuple(one for one in part.subjects if one not in group.subjects)
        group.parts.append(part)
        chosen.append(group)
    referred = [_find(groups, _reference(group)) for group in groups]
    order = sorted(range(len(groups)), key=lambda index: _depth(index, groups, referred))
    names = dict(zip(order, distinct_names([_name(groups[index]) for index in order]), strict=True))
    notes: list[str] = []
    arms: dict[int, Arm] = {}
    for index in order:
        other = referred[index]
        start = None if other is None or other is groups[index] else groups.index(other)
        arms[index] = _arm(groups[index], names[index], arms.get(start) if start is not None else None, notes)
        if groups[index] in [one for one in referred if one is not None] and not arms[index].role:
            arms[index] = replace(arms[index], role=START)
    by_part = {number: names[groups.index(group)] for number, group in enumerate(chosen)}
    return [arms[index] for index in order], by_part, notes


def _find(groups: Sequence[_Group], subjects: tuple[Subject, ...]) -> _Group | None:
    """The group of these subjects: one that has the very same name, or else the only one that could be meant."""
    exact = [group for group in groups if set(group.subjects) & set(subjects)]
    if exact:
        return exact[0]
    alike = [group for group in groups if same(group.subjects, subjects)]
    return alike[0] if len(alike) == 1 else None


def _apart(group: _Group, part: Part) -> bool:
    """Whether a group is what a part started from, or started from it, and so cannot be it whatever it is called.

    A run's directory may bear the name of its model.
    """
    starts = {one for other in group.parts for one in other.reference}
    return bool(set(group.subjects) & set(part.reference) or set(part.subjects) & starts)


def _reference(group: _Group) -> tuple[Subject, ...]:
    return next((part.reference for part in group.parts if part.reference), ())


def _depth(index: int, groups: Sequence[_Group], referred: Sequence[_Group | None]) -> int:
    """How many starts stand before this arm; a circle of references ends where it began."""
    seen = {index}
    while (other := referred[index]) is not None and (index := groups.index(other)) not in seen:
        seen.add(index)
    return len(seen) - 1


def _name(group: _Group) -> str:
    return next((part.name for part in group.parts if part.name), "") or subject_name(group.subjects[0])


def _arm(group: _Group, name: str, start: Arm | None, notes: list[str]) -> Arm:
    scores: dict[tuple[str, str, str], Score] = {}
    twice: dict[str, None] = {}
    for score in (score for part in group.parts for score in part.scores):
        key = (score.quantity.key, score.ground.name, score.ground.detail)
        known = scores.setdefault(key, score)
        if known.metric.low is None and _agree(known, score):
            scores[key] = score
        elif not _agree(known, score):
            twice[f"{score.quantity.title} ({score.ground.name})"] = None
    if twice:
        notes.append(f"{name} was measured more than once on {listing(list(twice))}; the first value is shown.")
    roles = [part.role for part in group.parts if part.role]
    return Arm(
        name=name,
        role=next((role for role in roles if role != START), roles[0] if roles else ""),
        reference=None if start is None else start.name,
        scores=tuple(_compared(score, start) for score in scores.values()),
        categories=tuple(dict.fromkeys(one for part in group.parts for one in part.categories)),
        curves=tuple(one for part in group.parts for one in part.curves),
        layer_maps=tuple(one for part in group.parts for one in part.layer_maps),
        answers=tuple(one for part in group.parts for one in part.answers),
    )


def _agree(first: Score, second: Score) -> bool:
    """Whether two scores have one value; a value that was told by another model's run has no interval."""
    values = (first.metric.value, second.metric.value)
    return None in values or isclose(values[0] or 0.0, values[1] or 0.0, rel_tol=1e-6, abs_tol=1e-9)


def _compared(score: Score, start: Arm | None) -> Score:
    """The score with its change against the start on the same ground, where the run itself did not say it."""
    if score.change is not None or start is None:
        return score
    key = (score.quantity.key, score.ground)
    other = next((one for one in start.scores if (one.quantity.key, one.ground) == key), None)
    return replace(score, change=difference(score.metric, other.metric if other else None))
