"""Charts of a guarded run's two ends: refusals before and after, and the subspace over the layers."""

from __future__ import annotations

from loralign.report.dots import MOMENTS, DotRow, dot_plot
from loralign.report.format import count, significant
from loralign.report.guard_records import GuardedRun, Safety
from loralign.report.intervals import percent_interval
from loralign.report.layer_maps import colour_bar, layer_grid, layer_panels, loose_layers
from loralign.report.records import Metric
from loralign.report.theme import SEQUENTIAL, Chart, Table

_MAPS = {
    "energy": (
        "Fisher energy captured by layer",
        "Share of each layer's Fisher energy that its directions capture.",
        "%{z:.3f}",
    ),
    "rank": (
        "Directions held by layer",
        "The rank of the subspace: how many output directions of a layer are held.",
        "%{z:.0f}",
    ),
}


def safety_chart(run: GuardedRun) -> Chart | None:
    """Return the dot plot of refusals, over all and by category, or ``None`` where no answers were judged."""
    if run.scores is None:
        return None
    found = {"before": run.scores.safety_before, "after": run.scores.safety_after}
    safeties = {moment: safety for moment, safety in found.items() if safety is not None}
    keys = [("unsafe", ""), ("safe", ""), *dict.fromkeys(key for one in safeties.values() for key in one.categories)]
    rows, counts = [], []
    for index, (kind, category) in enumerate(keys, start=-2):
        shares = _known({moment: _refused(safety, kind, category) for moment, safety in safeties.items()})
        if shares:
            name = f"{category}{'' if kind == 'unsafe' else f' ({kind})'}" if category else f"all {kind} prompts"
            rows.append(DotRow(name, None if index < 0 else index, shares))
            counts.append(next((n for one in safeties.values() if (n := one.prompts.get((kind, category)))), None))
    if not rows:
        return None
    moments = [moment for moment in MOMENTS if any(moment in row.shares for row in rows)]
    table = Table(
        ("refused of", "prompts", *moments),
        tuple(
            (row.name, count(prompts), *(percent_interval(row.shares.get(moment)) for moment in moments))
            for row, prompts in zip(rows, counts, strict=True)
        ),
    )
    figure = dot_plot(rows, moments, "prompts refused (%)")
    figure.update_xaxes(range=[-3, 103])
    return Chart(
        key="safety",
        title="Refusals by category before and after",
        note="Unsafe prompts should be refused, safe ones answered. Bars are bootstrap intervals; where they overlap, "
        "the prompts at hand may not settle a difference.",
        figure=figure,
        table=table,
    )


def _refused(safety: Safety, kind: str, category: str) -> Metric | None:
    if category:
        return safety.categories.get((kind, category))
    return safety.refusal if kind == "unsafe" else safety.over_refusal


def _known(metrics: dict[str, Metric | None]) -> dict[str, Metric]:
    return {moment: metric for moment, metric in metrics.items() if metric is not None and metric.value is not None}


def subspace_charts(run: GuardedRun) -> list[Chart]:
    """Return the maps of the subspace's energy and rank over module kinds and depth."""
    if run.subspace is None:
        return []
    layers = run.subspace.layers
    quantities = list(dict.fromkeys([*_MAPS, *(name for values in layers.values() for name in values)]))
    shown = [name for name in quantities if any(values.get(name) is not None for values in layers.values())]
    table = Table(
        ("layer", *shown),
        tuple((layer, *(significant(values.get(name)) for name in shown)) for layer, values in layers.items()),
    )
    charts: list[Chart] = []
    for name in (name for name in _MAPS if name in shown):
        title, note, form = _MAPS[name]
        grid = layer_grid(layers, [name])
        if grid.kinds:
            figure = layer_panels(grid.panels, grid.kinds, grid.depths, [""], f"{name} {form}")
            figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "colorbar": colour_bar()})
            note += " Rows are module kinds, columns depth; brighter is more."
        else:
            figure = loose_layers(grid.rest, [name], name, "")
        charts.append(Chart(f"subspace-{name}", title, note, figure, None if charts else table))
    return charts
