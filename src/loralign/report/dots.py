"""Dot plots of scores with their intervals: one row per name, one dot per moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from loralign.report.format import percent
from loralign.report.records import Metric
from loralign.report.theme import colour, label, style, symbol

MOMENTS = {"before": ("-open", 0.2), "after": ("", -0.2), "reference": ("-open-dot", 0.0)}
"""The moments that a plot can show: the variant of the symbol, and how far above the row's middle it stands."""


@dataclass(frozen=True)
class DotRow:
    """One row: its name as it was given, the number of its colour (``None`` is ink), and a share by moment."""

    name: str
    index: int | None
    shares: Mapping[str, Metric]


def dot_plot(rows: Sequence[DotRow], moments: Sequence[str], axis: str) -> go.Figure:
    """Return shares in percent as dots with error bars, the first row on top.

    Args:
        rows: at least one.
        moments: of :data:`MOMENTS`, in the order of the legend.
        axis: title of the horizontal axis.
    """
    figure = go.Figure()
    for moment in moments:
        variant, offset = MOMENTS[moment]
        for position, row in enumerate(rows):
            metric = row.shares.get(moment)
            if metric is not None and metric.value is not None:
                told = f"{label(row.name)}, {moment}: {percent(metric.value)}"
                _add_dot(figure, metric, metric.value, position - offset, row.index, variant, told)
        marker = {"symbol": f"circle{variant}", "color": "var(--ink)", "size": 11}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=moment)
    style(figure, height=130 + 62 * len(rows))
    ticktext = [label(row.name, 24) for row in rows]
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=ticktext, range=[len(rows) - 0.5, -0.5], zeroline=False
    )
    figure.update_xaxes(title=axis, zeroline=False)
    return figure


def _add_dot(
    figure: go.Figure, metric: Metric, share: float, height: float, index: int | None, variant: str, told: str
) -> None:
    shade = "var(--ink)" if index is None else colour(index)
    value = 100 * share
    error = None
    if metric.low is not None and metric.high is not None:
        error = {
            "type": "data",
            "symmetric": False,
            "array": [100 * metric.high - value],
            "arrayminus": [value - 100 * metric.low],
            "color": shade,
            "thickness": 1.5,
            "width": 4,
        }
    figure.add_scatter(
        x=[value],
        y=[height],
        mode="markers",
        marker={
            "color": shade,
            "size": 11,
            "symbol": f"{symbol(index or 0)}{variant}",
            "line": {"width": 2, "color": shade},
        },
        error_x=error,
        showlegend=False,
        hovertext=told,
        hoverinfo="text",
    )
