"""Heat maps over layers: module kinds as rows, depth as columns, one panel per quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loralign.report.diagnosis import mean
from loralign.report.layers import place_layers
from loralign.report.records import Numbers
from loralign.report.theme import SEQUENTIAL, label, style

Grid = list[list[list[float | None]]]
"""Values by panel, kind and depth."""


@dataclass(frozen=True)
class LayerGrid:
    """Layers in order: those of the numbered blocks as a grid, the mean where several share a cell; and the rest."""

    kinds: list[str]
    depths: list[int]
    panels: Grid
    rest: dict[str, Numbers]


def layer_grid(values: Mapping[str, Numbers], shown: Sequence[str]) -> LayerGrid:
    """Arrange numbers per layer.

    Args:
        values: by layer name and quantity.
        shown: the quantities, one panel each.
    """
    places = place_layers(values)
    grouped: dict[tuple[str, int], list[Numbers]] = {}
    for name, place in places.items():
        if place.depth is not None:
            grouped.setdefault((place.kind, place.depth), []).append(values[name])
    kinds = list(dict.fromkeys(kind for kind, _ in grouped))
    depths = sorted({depth for _, depth in grouped})
    cells = {key: _average(group, shown) for key, group in grouped.items()}
    panels = [[[cells.get((kind, depth), {}).get(name) for depth in depths] for kind in kinds] for name in shown]
    rest = {name: values[name] for name, place in places.items() if place.depth is None}
    return LayerGrid(kinds, depths, panels, rest)


def _average(values: Sequence[Numbers], shown: Sequence[str]) -> Numbers:
    return {name: mean({str(index): item.get(name) for index, item in enumerate(values)}) for name in shown}


def layer_panels(
    panels: Grid, kinds: Sequence[str], depths: Sequence[int], shown: Sequence[str], hover: str
) -> go.Figure:
    """Return one heat map per panel, all on the figure's colour axis, which is left to the caller.

    Args:
        panels: of a :class:`LayerGrid`.
        kinds: names of the rows.
        depths: numbers of the columns.
        shown: titles of the panels.
        hover: plotly's template of the value in the hover label.
    """
    height = max(18 * len(kinds), 54)
    total = (height + 34) * len(shown) + 110
    titles = [label(name) for name in shown]
    spacing = 34 / (total - 110) if len(shown) > 1 else 0
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles)
    for row, panel in enumerate(panels, start=1):
        figure.add_trace(
            go.Heatmap(
                z=panel,
                x=depths,
                y=[label(kind) for kind in kinds],
                coloraxis="coloraxis",
                hovertemplate=f"%{{y}}, depth %{{x}}<br>{hover}<extra></extra>",
                xgap=1,
                ygap=1,
            ),
            row=row,
            col=1,
        )
    style(figure, height=total)
    figure.update_xaxes(showgrid=False, zeroline=False)
    if len(depths) <= 12:
        figure.update_xaxes(tickvals=depths)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1)
    figure.update_xaxes(title="depth (block index)", row=len(shown), col=1)
    figure.update_layout(margin={"b": 96})
    return figure


def colour_bar(suffix: str = "") -> dict[str, object]:
    """Return the colour bar below the panels."""
    return {
        "ticksuffix": suffix,
        "orientation": "h",
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "thickness": 12,
        "len": 0.9,
        "outlinewidth": 0,
    }


def loose_layers(rest: Mapping[str, Numbers], shown: Sequence[str], quantity: str, axis: str) -> go.Figure:
    """Return a heat map of layers outside the numbered blocks: one row per layer, one column per entry of ``shown``.

    Args:
        rest: of a :class:`LayerGrid`.
        shown: titles of the columns.
        quantity: what the colour is.
        axis: what the columns are.
    """
    names = list(rest)
    figure = go.Figure(
        go.Heatmap(
            z=[[rest[name].get(column) for column in shown] for name in names],
            x=list(range(len(shown))),
            y=list(range(len(names))),
            customdata=[[f"{label(name)}<br>{label(column)}" for column in shown] for name in names],
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": quantity}, "thickness": 12, "outlinewidth": 0},
            hovertemplate=f"%{{customdata}}: {quantity} %{{z:.3f}}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    style(figure, height=240 + 22 * len(names))
    bare = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(tickvals=list(range(len(shown))), ticktext=[label(n, 16) for n in shown], title=axis, **bare)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=[label(n) for n in names], **bare)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(margin={"b": 110})
    return figure
