"""Charts of what a guard did over time: drift and budget, the penalty's terms, the update's share, refusals."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loralign.report.format import percent, significant
from loralign.report.guard_records import START, GuardedRun
from loralign.report.theme import Chart, Table, colour, label, symbol, thin
from loralign.report.timeline import Mark, finish, line, logarithmic

TERMS = {
    "alignment": "alignment, ‖F^½ΔW_A‖²",
    "stability": "stability, ‖H^½ΔW_T‖²",
    "overlap": "overlap, E_RM",
    "geodesic": "geodesic, E_geo",
}
"""The penalty's terms (docs/adapting.md), in the order of their colours."""

WIDE = 50.0
"""A multiplier that spans more than this factor gets a logarithmic axis."""

_TOLD = 160


def guard_charts(run: GuardedRun) -> dict[str, Chart]:
    """Return the charts that the run has data for: ``drift``, ``share``, ``penalty`` and ``refusals``."""
    charts = (_drift(run), _share(run), _penalty(run), _refusals(run))
    return {chart.key: chart for chart in charts if chart is not None}


def step_text(step: int) -> str:
    """Return a step for a table; the one before all others is the start."""
    return "start" if step == START else str(step)


def _drift(run: GuardedRun) -> Chart | None:
    probes = thin([probe for probe in run.probes if probe.kl is not None or probe.logprob_lost is not None])
    if not probes:
        return None
    steps = [probe.step for probe in probes]
    course = _control(run) if run.budget is not None else None
    figure = make_subplots(rows=2 if course else 1, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    drift = line(steps, [probe.kl for probe in probes], "drift, KL(start ‖ now)", "var(--accent)")
    lost = [probe.logprob_lost for probe in probes]
    figure.add_trace(drift, row=1, col=1)
    if any(value is not None for value in lost):
        look = line(steps, lost, "log-probability lost", "var(--contrast)", stroke="dash", marker="square")
        figure.add_trace(look, row=1, col=1)
    if run.budget is not None:
        stroke = {"color": "var(--ink)", "dash": "dot", "width": 1.5}
        ends = [steps[0], steps[-1]]
        budget = go.Scatter(x=ends, y=[run.budget] * 2, mode="lines", line=stroke, name="budget", hoverinfo="skip")
        figure.add_trace(budget, row=1, col=1)
    figure.update_yaxes(title="nats per token", rangemode="tozero", row=1, col=1)
    if course:
        title, points = course
        shown = thin(points)
        values = [value for _, value in shown]
        trace = line([step for step, _ in shown], values, title, "var(--mark)", marker="diamond", size=4)
        trace.update(line_shape="hv")  # it holds until the next probe
        figure.add_trace(trace, row=2, col=1)
        wide = min(values) > 0 and max(values) > WIDE * min(values)
        figure.update_yaxes(title=title, row=2, col=1, **(logarithmic(values) if wide else {"rangemode": "tozero"}))
    rows = [
        (step_text(p.step), *map(significant, (p.kl, p.logprob_lost, p.entropy, p.budget, p.multiplier)))
        for p in probes
    ]
    headings = ("step", "drift", "log-probability lost", "entropy", "budget", "multiplier")
    return Chart(
        key="drift",
        title="Drift from the start over time",
        note="On the probe: prompts with responses that must survive, in nats per response token."
        + (f" Below, the {course[0]} that the budget asked for." if course else ""),
        figure=finish_guarded(figure, run, 460 if course else 340),
        table=Table(headings, tuple(rows)),
    )


def _control(run: GuardedRun) -> tuple[str, list[tuple[int, float]]] | None:
    """What the budget moved, over steps: the strength of a projection, or else the multiplier."""
    strengths = [(step.step, step.strength) for step in run.guard_steps if step.strength is not None]
    if strengths:
        return "strength of projection", strengths
    records = run.guard_steps or run.probes
    multipliers = [(record.step, record.multiplier) for record in records if record.multiplier is not None]
    return ("multiplier", multipliers) if multipliers else None


def _share(run: GuardedRun) -> Chart | None:
    # At the start there is no update that could have a share.
    probes = thin([probe for probe in run.probes if probe.share is not None and probe.step > START])
    if not probes:
        return None
    values = [round(100 * probe.share, 6) for probe in probes if probe.share is not None]
    figure = go.Figure(line([p.step for p in probes], values, "share", "var(--accent)", hover="%{y:.3~g} %"))
    figure.update_yaxes(title="share of ‖ΔW‖² (%)", rangemode="tozero")
    return Chart(
        key="share",
        title="Share of the update in the alignment subspace over time",
        note="By squared norm, over all layers. What is in the subspace is what the guard presses on.",
        figure=finish_guarded(figure, run, 280),
        table=Table(("step", "share"), tuple((str(p.step), percent(p.share)) for p in probes)),
    )


def _penalty(run: GuardedRun) -> Chart | None:
    records = thin([step for step in run.guard_steps if step.penalty])
    steps = [record.step for record in records]
    figure = go.Figure()
    size = 5 if len(records) < 100 else 3
    for index, (name, title) in enumerate(TERMS.items()):
        values = _positive([record.penalty.get(name) for record in records])
        if any(value is not None for value in values):
            figure.add_trace(line(steps, values, title, colour(index), marker=symbol(index), size=size))
    total = _positive([record.penalty.get("total") for record in records])
    if any(value is not None for value in total):
        figure.add_trace(line(steps, total, "weighted sum", "var(--ink)", stroke="dash", marker="x", size=size))
    if not figure.data:
        return None
    drawn = [value for trace in figure.data for value in trace.y if value is not None]
    figure.update_yaxes(title="penalty (log scale)", **logarithmic(drawn))
    weights = ("alignment", "stability", "collision")
    rows = [
        (
            str(record.step),
            *(significant(record.penalty.get(name)) for name in (*TERMS, "total")),
            *(significant(record.weights.get(name)) for name in weights),
        )
        for record in thin(records, 200)
    ]
    headings = ("step", *TERMS, "weighted sum", "λ_A", "λ_T", "λ_NC")
    return Chart(
        key="penalty",
        title="Terms of the penalty over time",
        note="Summed over layers, before their weights; the dashed line is their weighted sum, which joins the loss. "
        "A term that is zero has no place on the logarithmic axis.",
        figure=finish_guarded(figure, run, 380),
        table=Table(headings, tuple(rows)),
    )


def _positive(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and value > 0 else None for value in values]


def _refusals(run: GuardedRun) -> Chart | None:
    records = thin([record for record in run.refusals if record.rate is not None])
    if not records:
        return None
    values = [100 * record.rate for record in records if record.rate is not None]
    figure = go.Figure(
        line([record.step for record in records], values, "refused", "var(--accent)", hover="%{y:.0f} %")
    )
    figure.update_yaxes(title="refused (%)", rangemode="tozero")
    return Chart(
        key="refusals",
        title="Refusals during training",
        note="Of the probe's unsafe prompts, answered during training.",
        figure=finish_guarded(figure, run, 280),
        table=Table(("step", "refused"), tuple((step_text(r.step), percent(r.rate)) for r in records)),
    )


def finish_guarded(figure: go.Figure, run: GuardedRun, height: int) -> go.Figure:
    """Finish a chart over time with the guard's marks; all share the axis, so that they can be compared by eye."""
    finish(figure, height, _marks(run))
    if run.taken:
        margin = max(0.5, 0.015 * run.taken)
        return figure.update_xaxes(range=[START - margin, run.taken - 1 + margin])
    return figure


def _marks(run: GuardedRun) -> list[Mark]:
    """Where the subspace was estimated again, and where a monitor warned."""
    again = [
        Mark(
            one.step,
            "re-estimated",
            (f"subspace estimated again at step {one.step}", f"similarity {significant(one.similarity)}"),
        )
        for one in run.reestimates
    ]
    warned = [
        Mark(one.step, "warning", (f"warning at step {one.step}", label(one.message, _TOLD), label(one.fix, _TOLD)))
        for one in run.warnings
    ]
    return [*again, *warned]
