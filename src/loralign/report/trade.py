"""Two measures of many arms against each other: a scatter with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from loralign.report.format import significant
from loralign.report.runs.pareto import front
from loralign.report.theme import Chart, Table, colour, label, style, symbol
from loralign.report.timeline import logarithmic

Interval = tuple[float, float, float]

_WIDE = 10.0
"""From such a ratio of the largest to the least value on, an axis is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """What is measured along an axis.

    Attributes:
        title: with its unit.
        higher: whether more of it is better.
    """

    title: str
    higher: bool


@dataclass(frozen=True)
class TradePoint:
    """An arm: value, low and high end of either measure."""

    name: str
    across: Interval
    up: Interval


def trade_front(points: Sequence[TradePoint], across: Axis, up: Axis) -> list[int]:
    """Indices of the points that no other one beats, along the horizontal axis."""
    sign = -1 if across.higher else 1
    edge = front([(sign * point.across[0], point.up[0]) for point in points], higher=up.higher)
    return edge[::-1] if across.higher else edge


def trade_chart(points: Sequence[TradePoint], across: Axis, up: Axis, *, key: str, note: str = "") -> Chart:
    """Draw the points, their intervals and the front.

    Args:
        points: at least one.
        across: horizontal axis.
        up: vertical axis.
        key: of the chart, unique on its page.
        note: a further sentence on how to read it.
    """
    edge = trade_front(points, across, up)
    figure = go.Figure()
    figure.add_scatter(
        x=[points[index].across[0] for index in edge],
        y=[points[index].up[0] for index in edge],
        mode="lines",
        line={"color": "var(--mark)", "dash": "dash", "width": 1.5},
        name="Pareto front",
        hoverinfo="skip",
    )
    for index, point in enumerate(points):
        figure.add_scatter(
            x=[point.across[0]],
            y=[point.up[0]],
            mode="markers",
            name=label(point.name, 24),
            marker={"color": colour(index), "symbol": symbol(index), "size": 12},
            error_x=_error(point.across, index),
            error_y=_error(point.up, index),
            hovertext=f"{label(point.name)}<br>{label(up.title)}: {_text(point.up)}"
            f"<br>{label(across.title)}: {_text(point.across)}",
            hoverinfo="text",
        )
    style(figure, height=420)
    figure.update_xaxes(title=label(across.title, 60), **spread([point.across for point in points]))
    figure.update_yaxes(title=label(up.title, 60), **({} if up.higher else {"autorange": "reversed"}))
    rows = tuple(
        (point.name, _text(point.across), _text(point.up), "yes" if index in edge else "no")
        for index, point in enumerate(points)
    )
    better = "right" if across.higher else "left"
    return Chart(
        key=key,
        title=f"{up.title} against {across.title}",
        note=f"Better is up and to the {better}. The dashed line joins what no other arm beats in both; crosses are "
        f"95 % intervals, and a front through overlapping ones is not settled. {note}".strip(),
        figure=figure,
        table=Table(("arm", across.title, up.title, "on the front"), rows),
    )


def spread(values: Sequence[Interval]) -> dict[str, object]:
    """Settings of an axis: logarithmic where one arm would press all others against its end, as drift without a guard.

    Intervals that reach zero have no place on such an axis.
    """
    if min(low for _, low, _ in values) <= 0:
        return {}
    found = [value for value, _, _ in values]
    return logarithmic(found) if max(found) > _WIDE * min(found) else {}


def _text(value: Interval) -> str:
    return f"{significant(value[0])} [{significant(value[1])}, {significant(value[2])}]"


def _error(value: Interval, index: int) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [value[2] - value[0]],
        "arrayminus": [value[0] - value[1]],
        "color": colour(index),
        "thickness": 1.2,
        "width": 3,
    }
