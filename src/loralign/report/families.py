"""Two measures of arms that come in families, such as two methods with a dial each: a line through every family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from loralign.report.format import significant
from loralign.report.theme import Chart, Table, colour, label, style, symbol
from loralign.report.trade import Axis, Interval, TradePoint, spread


@dataclass(frozen=True)
class Family:
    """Arms that differ in one dial.

    Attributes:
        name: in the legend.
        points: in the order of the dial.
    """

    name: str
    points: Sequence[TradePoint]


def families_chart(
    families: Sequence[Family], across: Axis, up: Axis, *, key: str, marks: Sequence[float] = (), note: str = ""
) -> Chart:
    """Draw every family as its points with their intervals, joined in the order of its dial.

    Args:
        families: of which an empty one is left out.
        across: horizontal axis.
        up: vertical axis.
        key: of the chart, unique on its page.
        marks: values of the horizontal measure that get a vertical line.
        note: a sentence on what the lines and marks are.
    """
    figure = go.Figure()
    for index, family in enumerate(one for one in families if one.points):
        points = family.points
        figure.add_scatter(
            x=[point.across[0] for point in points],
            y=[point.up[0] for point in points],
            error_x=_errors([point.across for point in points], index),
            error_y=_errors([point.up for point in points], index),
            mode="lines+markers",
            name=label(family.name),
            line={"color": colour(index), "width": 1.5},
            marker={"color": colour(index), "symbol": symbol(index), "size": 11},
            hovertext=[
                f"{label(point.name)}<br>{label(up.title)}: {_text(point.up)}"
                f"<br>{label(across.title)}: {_text(point.across)}"
                for point in points
            ],
            hoverinfo="text",
        )
    for mark in marks:
        figure.add_vline(x=mark, line={"color": "var(--mark)", "dash": "dot", "width": 1.5})
    style(figure, height=420)
    shown = [point.across for family in families for point in family.points]
    figure.update_xaxes(
        title=label(across.title, 60),
        **(spread(shown) if shown else {}),
        **({} if not across.higher else {"autorange": "reversed"}),
    )
    figure.update_yaxes(title=label(up.title, 60), **({} if up.higher else {"autorange": "reversed"}))
    rows = tuple(
        (point.name, family.name, _text(point.across), _text(point.up))
        for family in families
        for point in family.points
    )
    return Chart(
        key=key,
        title=f"{up.title} against {across.title}",
        note=f"Better is up and to the left; crosses are 95 % intervals. {note}".strip(),
        figure=figure,
        table=Table(("arm", "family", across.title, up.title), rows),
    )


def _text(value: Interval) -> str:
    return f"{significant(value[0])} [{significant(value[1])}, {significant(value[2])}]"


def _errors(values: Sequence[Interval], index: int) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in values],
        "arrayminus": [value - low for value, low, _ in values],
        "color": colour(index),
        "thickness": 1.2,
        "width": 3,
    }
