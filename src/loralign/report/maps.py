"""Charts of one moment: γ over layers and objectives, cosines between objectives, and the scores before and after."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loralign.report.diagnosis import mean
from loralign.report.format import percent, significant
from loralign.report.layers import place_layers
from loralign.report.records import Measurement, Metric, Numbers, Run, accuracy
from loralign.report.theme import DIVERGING, SEQUENTIAL, Chart, Table, colour, label, style, symbol
from loralign.report.words import percent_interval

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
_MOMENTS = (("before", "-open", 0.2), ("after", "", -0.2), ("reference", "-open-dot", 0.0))


def layer_charts(run: Run) -> list[Chart]:
    """Return the heat maps of γ by module kind and depth, and of layers outside the blocks, at the last such moment."""
    record = next((m for m in reversed(run.measurements) if m.layer_attenuation), None)
    if record is None:
        return []
    places = place_layers(record.layer_attenuation)
    blocks = {name: place for name, place in places.items() if place.depth is not None}
    rest = {name: record.layer_attenuation[name] for name in places if name not in blocks}
    shown = [name for name in run.objectives if any(name in values for values in record.layer_attenuation.values())]
    table = Table(
        ("layer", *(f"γ {name}" for name in shown)),
        tuple(
            (name, *(significant(values.get(objective)) for objective in shown))
            for name, values in record.layer_attenuation.items()
        ),
    )
    charts = []
    if blocks and shown:
        kinds = list(dict.fromkeys(place.kind for place in blocks.values()))
        depths = sorted({place.depth for place in blocks.values() if place.depth is not None})
        grouped: dict[tuple[str, int | None], list[Numbers]] = {}
        for name, place in blocks.items():
            grouped.setdefault((place.kind, place.depth), []).append(record.layer_attenuation[name])
        cells = {key: _average(values, shown) for key, values in grouped.items()}
        grid = [[[cells.get((kind, depth), {}).get(name) for depth in depths] for kind in kinds] for name in shown]
        charts.append(_absolute_map(record, grid, kinds, depths, shown, table))
        if len(shown) > 1:
            charts.append(_relative_map(grid, kinds, depths, shown))
    if rest and shown:
        charts.append(_loose_layers(rest, shown, None if charts else table))
    return charts


def _average(values: Sequence[Numbers], objectives: Sequence[str]) -> Numbers:
    return {name: mean({str(index): item.get(name) for index, item in enumerate(values)}) for name in objectives}


Grid = list[list[list[float | None]]]


def _absolute_map(
    record: Measurement, grid: Grid, kinds: list[str], depths: list[int], shown: list[str], table: Table
) -> Chart:
    figure = _panels(grid, kinds, depths, shown, "γ %{z:.3f}")
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "colorbar": _bar()})
    return Chart(
        key="layers",
        title="Attenuation γ by layer and objective",
        note=f"At step {record.step}. Rows are module kinds, columns depth; colour is γ, brighter is better reached.",
        figure=figure,
        table=table,
    )


def _relative_map(grid: Grid, kinds: list[str], depths: list[int], shown: list[str]) -> Chart:
    relative: Grid = [[[None] * len(depths) for _ in kinds] for _ in shown]
    for row in range(len(kinds)):
        for column in range(len(depths)):
            values = [panel[row][column] for panel in grid]
            average = mean({str(index): value for index, value in enumerate(values)})
            for index, value in enumerate(values):
                if average and value is not None:
                    relative[index][row][column] = 100 * (value / average - 1)
    reach = max((abs(v) for panel in relative for row in panel for v in row if v is not None), default=0) or 1.0
    figure = _panels(relative, kinds, depths, shown, "%{z:+.1f} % against the mean over objectives")
    figure.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -reach, "cmax": reach, "colorbar": _bar("%")})
    return Chart(
        key="layers-relative",
        title="Which objective each layer favours",
        note="The same γ against its mean over objectives in that layer, in percent. Where panels differ in colour, "
        "LoRA itself shifts the trade-off, and weights per layer can answer.",
        figure=figure,
    )


def _panels(grid: Grid, kinds: list[str], depths: list[int], shown: list[str], hover: str) -> go.Figure:
    height = max(18 * len(kinds), 54)
    total = (height + 34) * len(shown) + 110
    titles = [label(name) for name in shown]
    spacing = 34 / (total - 110) if len(shown) > 1 else 0
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=titles)
    for row, panel in enumerate(grid, start=1):
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


def _bar(suffix: str = "") -> dict[str, object]:
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


def _loose_layers(rest: dict[str, Numbers], shown: list[str], table: Table | None) -> Chart:
    names = list(rest)
    figure = go.Figure(
        go.Heatmap(
            z=[[rest[name].get(objective) for objective in shown] for name in names],
            x=list(range(len(shown))),
            y=list(range(len(names))),
            customdata=[[f"{label(name)}<br>{label(objective)}" for objective in shown] for name in names],
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": "γ"}, "thickness": 12, "outlinewidth": 0},
            hovertemplate="%{customdata}: γ %{z:.3f}<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    style(figure, height=240 + 22 * len(names))
    bare = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(
        tickvals=list(range(len(shown))), ticktext=[label(n, 16) for n in shown], title="objective", **bare
    )
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=[label(n) for n in names], **bare)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(margin={"b": 110})
    return Chart(
        key="layers-loose",
        title="Attenuation γ of layers outside the numbered blocks",
        note="One row per layer, one column per objective.",
        figure=figure,
        table=table,
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
    rows: list[tuple[str, int | None]] = [(name, index) for index, name in enumerate(run.objectives)]
    found = {
        (moment, name): metric
        for moment, scores in run.scores.items()
        for name in (*run.objectives, "")
        if (metric := accuracy(scores.objectives.get(name, {}) if name else scores.overall))
        and metric.value is not None
    }
    if len(run.objectives) > 1 and any(name == "" for _, name in found):
        rows.append(("", None))
    moments = [entry for entry in _MOMENTS if any(moment == entry[0] for moment, _ in found)]
    if not moments:
        return None
    repeated = all(found.get(("reference", name)) == found.get(("before", name)) for name, _ in rows)
    if repeated and len(moments) > 1:
        moments = [entry for entry in moments if entry[0] != "reference"]
    figure = go.Figure()
    for moment, variant, offset in moments:
        for position, (name, index) in enumerate(rows):
            if metric := found.get((moment, name)):
                _add_dot(figure, metric, position - offset, index, variant, f"{label(name or 'all')}, {moment}")
        marker = {"symbol": f"circle{variant}", "color": "var(--ink)", "size": 11}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=moment)
    style(figure, height=130 + 62 * len(rows))
    figure.add_vline(x=50, line={"color": "var(--line)", "dash": "dot"})
    ticktext = [label(name or "all", 24) for name, _ in rows]
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=ticktext, range=[len(rows) - 0.5, -0.5], zeroline=False
    )
    figure.update_xaxes(title="preference accuracy (%)", zeroline=False)
    table = Table(
        ("objective", *(moment for moment, *_ in moments)),
        tuple(
            (name or "all", *(percent_interval(found.get((moment, name))) for moment, *_ in moments))
            for name, _ in rows
        ),
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


def _add_dot(figure: go.Figure, metric: Metric, height: float, index: int | None, variant: str, told: str) -> None:
    shade = "var(--ink)" if index is None else colour(index)
    value = 100 * (metric.value or 0.0)
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
        hovertext=f"{told}: {percent(metric.value)}",
        hoverinfo="text",
    )
