"""The energy curves of a subspace as a page of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from loralign.files import write_text
from loralign.report.document import render_figure
from loralign.report.format import whole_percent
from loralign.report.theme import SEQUENTIAL, Chart, Table, label, style

if TYPE_CHECKING:
    from loralign.guard import AlignmentSubspace


def render_energy(subspace: AlignmentSubspace, output: Path) -> None:
    """Draw the share of Fisher energy that the first directions of every layer capture, atomically.

    Args:
        subspace: what is drawn; layers are coloured by their place in the model, from the first to the last.
        output: a self-contained HTML file.

    Raises:
        OutputError: the file system refused the write.
    """
    write_text(output, render_figure(energy_chart(subspace)))


def energy_chart(subspace: AlignmentSubspace) -> Chart:
    """The figure of :func:`render_energy`, with the last point of every curve as a table."""
    figure = go.Figure()
    count = max(1, len(subspace.layers) - 1)
    rows: list[tuple[str, ...]] = []
    for index, (name, layer) in enumerate(subspace.layers.items()):
        curve = subspace.energy_curve(name).tolist()
        figure.add_scatter(
            x=list(range(1, len(curve) + 1)),
            y=curve,
            mode="lines",
            name=label(name),
            line={"color": sample_colorscale(SEQUENTIAL, index / count)[0], "width": 1.2},
            hovertemplate="%{y:.1%} of the energy in %{x} directions<extra>%{fullData.name}</extra>",
            showlegend=False,
        )
        rows.append((name, str(layer.rank), whole_percent(layer.energy)))
    if subspace.info.energy is not None:
        figure.add_hline(y=subspace.info.energy, line_dash="dash", line_color="var(--soft)")
    style(figure, height=560)
    figure.update_layout(
        xaxis={"title": {"text": "directions"}},
        yaxis={"title": {"text": "share of the Fisher trace"}, "range": [0, 1], "tickformat": ".0%"},
    )
    note = "One line per layer, from the first (dark) to the last (bright); it ends at the layer's rank."
    if subspace.info.energy is not None:
        note += " Dashed: the energy aimed at."
    return Chart("energy", "Fisher energy captured", note, figure, Table(("layer", "rank", "energy"), tuple(rows)))
