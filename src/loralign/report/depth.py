"""Values of layers along the depth of a model: one trace per comparison, and a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go

from loralign.report.format import significant
from loralign.report.layers import place_layers, short_name
from loralign.report.theme import Chart, Table, colour, label, style, symbol


def depth_chart(
    traces: Mapping[str, Mapping[str, float]], *, axis: str, threshold: float, key: str, title: str, note: str = ""
) -> Chart | None:
    """Draw every layer as a dot at its block, and the mean of every block as a line.

    Args:
        traces: by name of the comparison, values by layer name; layers outside of the numbered blocks are left out.
        axis: title of the vertical axis.
        threshold: drawn across.
        key: of the chart, unique on its page.
        title: of the chart.
        note: a further sentence on how to read it.

    Returns:
        ``None`` where no layer stands in a numbered block.
    """
    figure = go.Figure()
    means: dict[str, dict[int, float]] = {}
    for index, (name, values) in enumerate(traces.items()):
        found = [
            (place.depth, values[layer], layer)
            for layer, place in place_layers(values).items()
            if place.depth is not None
        ]
        means[name] = {
            depth: fmean(value for at, value, _ in found if at == depth)
            for depth in sorted({depth for depth, *_ in found})
        }
        _add(figure, name, index, found, means[name])
    depths = sorted({depth for line in means.values() for depth in line})
    if not depths:
        return None
    figure.add_hline(y=threshold, line_dash="dash", line_color="var(--ink)", annotation_text=significant(threshold, 2))
    style(figure, height=460)
    figure.update_xaxes(title="block, from the first to the last")
    figure.update_yaxes(title=label(axis, 60))
    rows = tuple((str(depth), *(significant(line.get(depth)) for line in means.values())) for depth in depths)
    return Chart(
        key=key,
        title=title,
        note=f"Dots are layers, lines the means of blocks; dashed is the threshold, {significant(threshold, 2)}. "
        f"{note}".strip(),
        figure=figure,
        table=Table(("block", *means), rows),
    )


def _add(
    figure: go.Figure, name: str, index: int, found: Sequence[tuple[int, float, str]], means: Mapping[int, float]
) -> None:
    shade = colour(index)
    figure.add_scatter(
        x=[depth for depth, *_ in found],
        y=[value for _, value, _ in found],
        mode="markers",
        marker={"color": shade, "symbol": symbol(index), "size": 6, "opacity": 0.4},
        legendgroup=str(index),
        showlegend=False,
        hovertext=[
            f"{label(short_name(layer), 80)}<br>{label(name)}: {significant(value)}" for _, value, layer in found
        ],
        hoverinfo="text",
    )
    figure.add_scatter(
        x=list(means),
        y=list(means.values()),
        mode="lines",
        line={"color": shade, "width": 2},
        name=label(name),
        legendgroup=str(index),
        hoverinfo="skip",
    )
