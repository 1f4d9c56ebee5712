"""Charts of what happened over time: γ, weights, distortions, and the losses of every objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loralign.report.alignment_records import Run
from loralign.report.diagnosis import known
from loralign.report.format import percent, significant
from loralign.report.records import Measurement, Numbers
from loralign.report.theme import Chart, Table, colour, dash, label, symbol, thin
from loralign.report.timeline import Mark, dots_and_mean, finish, line

MOST_BANDS = 4
"""With more objectives the ranges over layers would hide each other and are left out."""


def time_charts(run: Run) -> dict[str, Chart]:
    """Return the charts that the run has data for, by key: ``attenuation``, ``weights``, ``distortion``, ``losses``."""
    charts = (_attenuation(run), _weights(run), _distortion(run), _losses(run))
    return {chart.key: chart for chart in charts if chart is not None}


def _attenuation(run: Run) -> Chart | None:
    figure = go.Figure()
    measurements = thin(run.measurements)
    if not _add_lines(figure, run, measurements, lambda record: record.attenuation):
        return None
    figure.update_yaxes(title="γ (share of gradient length)", rangemode="tozero")
    return Chart(
        key="attenuation",
        title="Attenuation γ by objective over time",
        note="How much of each objective's full-space gradient lies where LoRA can act, by length; 1 would be all.",
        figure=_finish(figure, run, 340),
        table=_step_table(run, "γ", [(m.step, m.attenuation) for m in measurements]),
    )


def _weights(run: Run) -> Chart | None:
    figure = go.Figure()
    measurements = thin(run.measurements)
    if len(run.objectives) <= MOST_BANDS:
        for index, name in enumerate(run.objectives):
            _add_band(figure, measurements, name, index)
    if not _add_lines(figure, run, measurements, lambda record: record.weights):
        return None
    ends = [measurements[0].step, measurements[-1].step]
    for index, name in enumerate(run.objectives):
        if (target := run.targets.get(name)) is not None:
            stroke = {"color": colour(index), "dash": "dot", "width": 1}
            figure.add_scatter(x=ends, y=[target] * 2, mode="lines", line=stroke, showlegend=False, hoverinfo="skip")
    layered = any(measurement.layer_weights for measurement in measurements)
    values = [w for m in measurements for w in (*m.weights.values(), *run.targets.values()) if w is not None]
    values += [
        w for m in measurements for weights in m.layer_weights.values() for w in weights.values() if w is not None
    ]
    # Wide enough that a wiggle of a few percent does not look like an effect.
    span = [min(0.8 * max(values), 0.95 * min(values)), max(1.25 * min(values), 1.05 * max(values))]
    figure.update_yaxes(title="weight (gradient multiplier)", range=span)
    return Chart(
        key="weights",
        title="Weights over time",
        note="Dotted: the target weights. "
        + (
            "Lines are means over layers, bands (up to four objectives) the range over layers."
            if layered
            else "One weight per objective for the model."
        ),
        figure=_finish(figure, run, 320),
        table=_step_table(run, "weight of", [(m.step, m.weights) for m in measurements]),
    )


def _add_band(figure: go.Figure, measurements: Sequence[Measurement], name: str, index: int) -> None:
    ranges = []
    for measurement in measurements:
        values = [w for weights in measurement.layer_weights.values() if (w := weights.get(name)) is not None]
        if values:
            ranges.append((measurement.step, min(values), max(values)))
    if len(ranges) > 1:
        figure.add_scatter(
            x=[step for step, *_ in ranges] + [step for step, *_ in reversed(ranges)],
            y=[high for *_, high in ranges] + [low for _, low, _ in reversed(ranges)],
            fill="toself",
            fillcolor=colour(index),
            opacity=0.15,
            mode="none",
            showlegend=False,
            hoverinfo="skip",
        )


def _distortion(run: Run) -> Chart | None:
    measurements = thin(run.measurements)
    series: list[tuple[str, str, str, int, list[float | None]]] = [
        ("mixture", "var(--accent)", "solid", 1, [m.directional_distortion for m in measurements]),
        ("step actually taken", "var(--ink)", "dash", 1, [m.step_distortion for m in measurements]),
        ("trade-off", "var(--contrast)", "solid", 2, [_points(m.total_variation) for m in measurements]),
    ]
    shown = [entry for entry in series if any(value is not None for value in entry[4])]
    if not shown:
        return None
    steps = [measurement.step for measurement in measurements]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    for name, shade, stroke, row, values in shown:
        marker = "circle" if stroke == "solid" else "square"
        figure.add_trace(line(steps, values, name, shade, stroke=stroke, marker=marker), row=row, col=1)
    figure.update_yaxes(title="directional (1 − cos)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="trade-off (points)", rangemode="tozero", row=2, col=1)
    rows = [
        (
            str(m.step),
            *map(significant, (m.directional_distortion, m.step_distortion)),
            percent(m.total_variation),
            significant(m.spread),
        )
        for m in measurements
    ]
    return Chart(
        key="distortion",
        title="Directional and trade-off distortion over time",
        note="Directional: how far the mixture's gradient turns on its way into the subspace, and how far the "
        "optimiser's step lies from it. Trade-off: how many points of share move against what was asked.",
        figure=_finish(figure, run, 440),
        table=Table(
            ("step", "directional, mixture", "directional, step taken", "trade-off", "max γ / min γ"), tuple(rows)
        ),
    )


def _losses(run: Run) -> Chart | None:
    panels = (("loss", "loss (nats)"), ("accuracy", "accuracy (%)"), ("margin", "margin (nats)"))
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    window = max(1, len(run.steps) // 12)
    drawn: set[str] = set()
    for row, (metric, title) in enumerate(panels, start=1):
        scale = 100.0 if metric == "accuracy" else 1.0
        for index, name in enumerate(run.objectives):
            points = [
                (step.step, scale * value)
                for step in run.steps
                if (value := step.objectives.get(name, {}).get(metric)) is not None
            ]
            if not points:
                continue
            traces = dots_and_mean(points, window, label(name), colour(index), stroke=dash(index), marker=symbol(index))
            traces[1].update(legendgroup=str(index), showlegend=name not in drawn)
            figure.add_traces(traces, rows=row, cols=1)
            drawn.add(name)
        figure.update_yaxes(title=title, row=row, col=1)
    if not drawn:
        return None
    rows = [
        (
            str(step.step),
            significant(step.loss),
            significant(step.learning_rate),
            *(significant(step.objectives.get(name, {}).get(key)) for name in run.objectives for key, _ in panels),
        )
        for step in thin(run.steps, 200)
    ]
    headings = ("step", "loss", "learning rate", *(f"{name} {key}" for name in run.objectives for key, _ in panels))
    return Chart(
        key="losses",
        title="Loss, accuracy and margin per objective over time",
        note=f"On the training batches. Dots are single steps, lines are means over {2 * (window // 2) + 1} steps; few "
        "pairs per step make the dots noisy. The loss is the unweighted one.",
        figure=_finish(figure, run, 620),
        table=Table(headings, tuple(rows)),
    )


def _add_lines(
    figure: go.Figure, run: Run, measurements: Sequence[Measurement], read: Callable[[Measurement], Numbers]
) -> bool:
    steps = [measurement.step for measurement in measurements]
    size = 6 if len(measurements) < 100 else 3
    drawn = False
    for index, name in enumerate(run.objectives):
        values = [read(measurement).get(name) for measurement in measurements]
        if any(value is not None for value in values):
            shade, stroke, marker = colour(index), dash(index), symbol(index)
            figure.add_trace(line(steps, values, label(name), shade, stroke=stroke, marker=marker, size=size))
            drawn = True
    return drawn


def _finish(figure: go.Figure, run: Run, height: int) -> go.Figure:
    """Finish a chart over time, with a mark where the subspace was refined."""
    marks = []
    for event in run.refinements:
        before, after = known(event.before), known(event.after)
        moves = [
            f"{label(name)} γ {significant(before[name])} → {significant(after[name])}"
            for name in after
            if name in before
        ]
        told = (f"refinement at step {event.step} ({label(event.mode)})", f"energy moved {percent(event.energy_moved)}")
        marks.append(Mark(event.step, "refined", (*told, *moves)))
    return finish(figure, height, marks)


def _step_table(run: Run, what: str, records: Sequence[tuple[int, Numbers]]) -> Table:
    rows = tuple((str(step), *(significant(values.get(name)) for name in run.objectives)) for step, values in records)
    return Table(("step", *(f"{what} {name}" for name in run.objectives)), rows)


def _points(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 6)  # rounding noise would get an axis of its own
