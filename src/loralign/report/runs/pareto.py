"""Drift against task score: what each arm paid for what it gained, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from loralign.report.format import significant
from loralign.report.intervals import turned
from loralign.report.records import Metric
from loralign.report.runs.combining import Arm
from loralign.report.runs.records import KL, REFUSAL, Ground, Quantity
from loralign.report.runs.tables import Column, columns, heading, value_text
from loralign.report.theme import Chart, Table, colour, label, style, symbol

MOST_TASKS = 4
"""Tasks drawn at most, each as a chart of its own; the table of arms has all."""


@dataclass(frozen=True)
class Point:
    """An arm on the scatter: its number in the report, its drift (in points or nats) and its task score."""

    arm: int
    drift: Metric
    task: Metric


def pareto_charts(arms: Sequence[Arm]) -> list[Chart]:
    """Return one scatter per task that at least two arms with a drift from one start were scored on."""
    known = columns(arms)
    # The accuracies of single objectives are parts of one that stands for them all.
    tasks = [column for column in known if column[0].gains and not column[0].key.startswith("preference_accuracy:")]
    starts = list(dict.fromkeys(arm.reference for arm in arms if arm.reference is not None))
    charts: list[Chart] = []
    for task in tasks:
        candidates = [(drift, _points(arms, start, task, drift)) for drift in _drifts(known) for start in starts]
        chosen = max(candidates, key=lambda candidate: len(candidate[1]), default=None)
        if chosen is not None and len(chosen[1]) > 1:
            charts.append(_scatter(arms, task, *chosen, len(charts), known))
    return charts[:MOST_TASKS]


def front(points: Sequence[tuple[float, float]], *, higher: bool) -> list[int]:
    """Return the indices of the points that no other one beats, by rising drift.

    A point is beaten by one with as little drift and as good a score, of which one is truly better.

    Args:
        points: drift, where less is better, and score.
        higher: whether a higher score is better.
    """
    sign = 1 if higher else -1
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -sign * points[index][1]))
    found: list[int] = []
    for index in order:
        best = sign * points[found[-1]][1] if found else -float("inf")
        equal = bool(found) and points[index] == points[found[-1]]
        if sign * points[index][1] > best or equal:
            found.append(index)
    return found


def _drifts(known: Sequence[Column]) -> list[Column]:
    """What could stand for drift, the most telling first: lost refusals, then divergence; shared grounds before own."""
    found = [column for column in known if column[0] in (REFUSAL, KL)]
    return sorted(found, key=lambda column: (column[1].name.startswith("own"), column[0] == KL))


def _points(arms: Sequence[Arm], start: str, task: Column, drift: Column) -> list[Point]:
    """The start, which has not drifted from itself, and what was measured against it."""
    found = []
    for index, arm in enumerate(arms):
        scores = {(score.quantity, score.ground): score for score in arm.scores}
        gained, kept = scores.get(task), scores.get(drift)
        lost: Metric | None = None
        if arm.name == start:
            lost = Metric(0.0)
        elif arm.reference == start and kept is not None:
            lost = _in_points(turned(kept.change)) if drift[0] == REFUSAL else kept.metric
        if gained is not None and gained.metric.value is not None and lost is not None and lost.value is not None:
            found.append(Point(index, lost, gained.metric))
    return found


def _in_points(share: Metric | None) -> Metric | None:
    if share is None:
        return None
    return Metric(*(None if value is None else 100 * value for value in (share.value, share.low, share.high)))


def _scatter(
    arms: Sequence[Arm], task: Column, drift: Column, points: Sequence[Point], number: int, known: Sequence[Column]
) -> Chart:
    quantity = task[0]
    lost = "refusals lost (points)" if drift[0] == REFUSAL else drift[0].title
    figure = go.Figure()
    places = [(point.drift.value or 0.0, point.task.value or 0.0) for point in points]
    scale = 100.0 if quantity.unit == "share" else 1.0
    edge = front(places, higher=quantity.higher)
    figure.add_scatter(
        x=[places[index][0] for index in edge],
        y=[scale * places[index][1] for index in edge],
        mode="lines",
        line={"color": "var(--mark)", "dash": "dash", "width": 1.5, "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
        meta={"front": True, "higher": quantity.higher},
    )
    for point, (x, y) in zip(points, places, strict=True):
        name, index = arms[point.arm].name, point.arm
        figure.add_scatter(
            x=[x],
            y=[scale * y],
            mode="markers",
            name=label(name, 24),
            marker={"color": colour(index), "symbol": symbol(index), "size": 13},
            error_x=_error(point.drift, 1.0, index),
            error_y=_error(point.task, scale, index),
            hovertext=f"{label(name)}<br>{label(quantity.title)}: {value_text(point.task, quantity)}"
            f"<br>{label(lost)}: {significant(x)}",
            hoverinfo="text",
            meta={"arm": index},
        )
    style(figure, height=340)
    figure.update_layout(legend={"itemclick": False, "itemdoubleclick": False})
    figure.update_xaxes(title=lost)
    up = {} if quantity.higher else {"autorange": "reversed"}
    figure.update_yaxes(title=label(quantity.title, 40) + (" (%)" if scale > 1 else ""), **up)
    rows = tuple(
        (
            arms[point.arm].name,
            value_text(point.task, quantity),
            significant(point.drift.value),
            "yes" if place in edge else "no",
        )
        for place, point in enumerate(points)
    )
    return Chart(
        key=f"pareto-{number}",
        title=f"{quantity.title} against drift",
        note=f"Drift is {_told(*drift)}. Up is better, left is safer. The dashed line is the Pareto front: no model on "
        "it is beaten in both by another. Crosses are intervals; a front through overlapping ones is not settled.",
        figure=figure,
        table=Table(("arm", heading(task, known), lost, "on the front"), rows),
    )


def _told(quantity: Quantity, ground: Ground) -> str:
    what = "the share of refusals of unsafe prompts that was lost" if quantity == REFUSAL else "KL(start ‖ tuned)"
    return f"{what}, on {ground.name}"


def _error(metric: Metric, scale: float, index: int) -> dict[str, object] | None:
    if metric.value is None or metric.low is None or metric.high is None:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (metric.high - metric.value)],
        "arrayminus": [scale * (metric.value - metric.low)],
        "color": colour(index),
        "thickness": 1.3,
        "width": 4,
    }
