"""Charts of one moment: γ over layers and objectives, cosines between objectives, and the scores before and after."""

from __future__ import annotations

import plotly.graph_objects as go

from loralign.report.alignment_records import Run
from loralign.report.diagnosis import mean
from loralign.report.dots import MOMENTS, DotRow, dot_plot
from loralign.report.format import significant
from loralign.report.intervals import percent_interval
from loralign.report.layer_maps import Grid, LayerGrid, colour_bar, layer_grid, layer_panels, loose_layers
from loralign.report.records import Measurement, accuracy
from loralign.report.theme import DIVERGING, SEQUENTIAL, Chart, Table, label, style

_SPACES = {
    "full": "full space",
    "accessible": "LoRA's subspace",
    "euclidean": "the factors A and B",
}
_NOTES = {
    "full": "What full fine-tuning would see.",
    "accessible": "What is left where LoRA can act.",
    "euclidean": "What the optimiser sees.",
}


def layer_charts(run: Run) -> list[Chart]:
    """Return the heat maps of γ by module kind and depth, and of layers outside the blocks, at the last such moment."""
    record = next((m for m in reversed(run.measurements) if m.layer_attenuation), None)
    if record is None:
        return []
    shown = [name for name in run.objectives if any(name in values for values in record.layer_attenuation.values())]
    if not shown:
        return []
    grid = layer_grid(record.layer_attenuation, shown)
    table = Table(
        ("layer", *(f"γ {name}" for name in shown)),
        tuple(
            (name, *(significant(values.get(objective)) for objective in shown))
            for name, values in record.layer_attenuation.items()
        ),
    )
    charts = []
    if grid.kinds:
        charts.append(_absolute_map(record, grid, shown, table))
        if len(shown) > 1:
            charts.append(_relative_map(grid, shown))
    if grid.rest:
        charts.append(
            Chart(
                key="layers-loose",
                title="Attenuation γ of layers outside the numbered blocks",
                note="One row per layer, one column per objective.",
                figure=loose_layers(grid.rest, shown, "γ", "objective"),
                table=None if charts else table,
            )
        )
    return charts


def _absolute_map(record: Measurement, grid: LayerGrid, shown: list[str], table: Table) -> Chart:
    figure = layer_panels(grid.panels, grid.kinds, grid.depths, shown, "γ %{z:.3f}")
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "colorbar": colour_bar()})
    return Chart(
        key="layers",
        title="Attenuation γ by layer and objective",
        note=f"At step {record.step}. Rows are module kinds, columns depth; colour is γ, brighter is better reached.",
        figure=figure,
        table=table,
    )


def _relative_map(grid: LayerGrid, shown: list[str]) -> Chart:
    relative: Grid = [[[None] * len(grid.depths) for _ in grid.kinds] for _ in shown]
    for row in range(len(grid.kinds)):
        for column in range(len(grid.depths)):
            values = [panel[row][column] for panel in grid.panels]
            average = mean({str(index): value for index, value in enumerate(values)})
            for index, value in enumerate(values):
                if average and value is not None:
                    relative[index][row][column] = 100 * (value / average - 1)
    reach = max((abs(v) for panel in relative for row in panel for v in row if v is not None), default=0) or 1.0
    hover = "%{z:+.1f} % against the mean over objectives"
    figure = layer_panels(relative, grid.kinds, grid.depths, shown, hover)
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -reach, "cmax": reach, "colorbar": colour_bar("%")}
    )
    return Chart(
        key="layers-relative",
        title="Which objective each layer favours",
        note="The same γ against its mean over objectives in that layer, in percent. Where panels differ in colour, "
        "LoRA itself shifts the trade-off, and weights per layer can answer.",
        figure=figure,
    )


def cosine_charts(run: Run) -> list[Chart]:
    """Return one matrix of cosines between the objectives per space, at the last measurement that has them."""
    record = next((m for m in reversed(run.measurements) if m.cosine), None)
    if record is None:
        return []
    raw = list(record.objectives or run.objectives)
    names = [label(name, 16) for name in raw]
    charts = []
    for space, title in _SPACES.items():
        rows = record.cosine.get(space, [])
        size = len(raw)
        matrix = [
            [rows[i][j] if i < len(rows) and j < len(rows[i]) else None for j in range(size)] for i in range(size)
        ]
        if all(value is None for row in matrix for value in row):
            continue
        figure = go.Figure(
            go.Heatmap(
                z=matrix,
                x=list(range(size)),
                y=list(range(size)),
                customdata=[[f"{a} and {b}" for b in names] for a in names],
                texttemplate="%{z:.2f}" if size <= 6 else None,
                colorscale=DIVERGING,
                zmin=-1,
                zmax=1,
                showscale=False,
                xgap=2,
                ygap=2,
                hovertemplate="%{customdata}<br>cosine %{z:.3f}<extra></extra>",
            )
        )
        style(figure, height=300 if size <= 6 else 420)
        ticks = {"tickvals": list(range(size)), "ticktext": names, "showgrid": False, "zeroline": False}
        figure.update_xaxes(**ticks, title="objective")
        figure.update_yaxes(**ticks, autorange="reversed")
        table = Table(("cosine", *raw), tuple((raw[i], *map(significant, matrix[i])) for i in range(size)))
        charts.append(Chart(f"cosine-{space}", f"In {title}", f"Step {record.step}. {_NOTES[space]}", figure, table))
    return charts


def score_chart(run: Run) -> Chart | None:
    """Return the dot plot of preference accuracy with intervals, or ``None`` without scores."""
    rows = []
    for index, name in enumerate((*run.objectives, None)):
        found = {
            moment: metric
            for moment, scores in run.scores.items()
            if (metric := accuracy(scores.overall if name is None else scores.objectives.get(name, {})))
            and metric.value is not None
        }
        if name is not None:
            rows.append(DotRow(name, index, found))
        elif found and len(run.objectives) > 1:
            rows.append(DotRow("all", None, found))
    moments = [moment for moment in MOMENTS if any(moment in row.shares for row in rows)]
    if not moments:
        return None
    repeated = all(row.shares.get("reference") == row.shares.get("before") for row in rows)
    if repeated and len(moments) > 1:
        moments = [moment for moment in moments if moment != "reference"]
    figure = dot_plot(rows, moments, "preference accuracy (%)")
    figure.add_vline(x=50, line={"color": "var(--line)", "dash": "dot"})
    table = Table(
        ("objective", *moments),
        tuple((row.name, *(percent_interval(row.shares.get(moment)) for moment in moments)) for row in rows),
    )
    return Chart(
        key="scores",
        title="Preference accuracy before and after",
        note="On the validation pairs. Bars are bootstrap intervals; the dotted line is chance. Overlapping intervals "
        "mean that the pairs at hand may not settle whether there is a difference."
        + (" The reference is the policy before training." if repeated else ""),
        figure=figure,
        table=table,
    )
