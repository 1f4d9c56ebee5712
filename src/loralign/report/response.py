"""Measures against the values of one factor, with intervals: one panel for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plotly.subplots import make_subplots

from loralign.report.format import significant
from loralign.report.theme import Chart, Table, colour, label, style, symbol
from loralign.report.trade import Interval


@dataclass(frozen=True)
class Response:
    """One measure.

    Attributes:
        title: with its unit.
        values: value, low and high end at each value of the factor; ``None`` where it was not measured.
        reference: a level to compare with, or ``None``.
    """

    title: str
    values: Sequence[Interval | None]
    reference: float | None = None


def response_chart(
    factor: str, levels: Sequence[str], responses: Sequence[Response], *, key: str, reference: str = "", note: str = ""
) -> Chart:
    """Draw measures against a factor.

    Args:
        factor: what is varied.
        levels: its values, evenly spaced in this order.
        responses: at least one, each with as many values.
        key: of the chart, unique on its page.
        reference: what the dotted level is.
        note: a further sentence on how to read it.
    """
    figure = make_subplots(rows=len(responses), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, one in enumerate(responses, start=1):
        known = [(level, value) for level, value in zip(levels, one.values, strict=True) if value is not None]
        figure.add_scatter(
            x=[label(level) for level, _ in known],
            y=[value[0] for _, value in known],
            mode="lines+markers",
            line={"color": colour(row - 1)},
            marker={"symbol": symbol(row - 1), "size": 9},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - value for _, (value, _, high) in known],
                "arrayminus": [value - low for _, (value, low, _) in known],
                "thickness": 1.2,
                "width": 4,
            },
            hovertext=[
                f"{label(factor)} {label(level)}<br>{label(one.title)}: {_text(value)}" for level, value in known
            ],
            hoverinfo="text",
            showlegend=False,
            row=row,
            col=1,
        )
        if one.reference is not None:
            figure.add_hline(y=one.reference, line_dash="dot", line_color="var(--ink)", row=row, col=1)
        figure.update_yaxes(title=label(one.title, 30), row=row, col=1)
    style(figure, height=120 + 190 * len(responses))
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[label(level) for level in levels])
    figure.update_xaxes(title=label(factor), row=len(responses), col=1)
    rows = tuple((level, *(_text(one.values[index]) for one in responses)) for index, level in enumerate(levels))
    dotted = f" Dotted: {reference}." if reference and any(one.reference is not None for one in responses) else ""
    return Chart(
        key=key,
        title=f"What the {factor} does",
        note=f"Bars are 95 % intervals.{dotted} {note}".strip(),
        figure=figure,
        table=Table((factor, *(one.title for one in responses)), rows),
    )


def _text(value: Interval | None) -> str:
    return "" if value is None else f"{significant(value[0])} [{significant(value[1])}, {significant(value[2])}]"
