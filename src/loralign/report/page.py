"""The page of an alignment run: what goes into its template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loralign.files import write_text
from loralign.report.alignment_records import Run
from loralign.report.charts import time_charts
from loralign.report.document import render_document
from loralign.report.format import ABSENT, count, duration, percent, significant
from loralign.report.guard_outcome import SCORE_HEADINGS, kept_rows
from loralign.report.guard_page import guard_content, guard_facts, table_of
from loralign.report.guard_words import guard_sentences
from loralign.report.intervals import interval, percent_interval
from loralign.report.maps import cosine_charts, layer_charts, score_chart
from loralign.report.records import Refinement
from loralign.report.theme import Table, thin
from loralign.report.words import SUMMARY_HEADINGS, explain_geometry, headline, summary_rows

MOST_LAYER_TABLES = 12
"""Refinements whose per-layer table is shown; with more of them, evenly chosen ones."""

_METRICS = {
    "accuracy": ("preference accuracy", percent_interval),
    "accuracy_reward": ("accuracy of implicit rewards", percent_interval),
    "accuracy_normalised": ("accuracy, log-probability per token", percent_interval),
    "accuracy_summed": ("accuracy, summed log-probability", percent_interval),
    "margin": ("margin (nats)", interval),
    "loss": ("loss (nats)", interval),
    "kl_policy_reference": ("KL(policy ‖ reference) (nats/token)", interval),
    "kl_reference_policy": ("KL(reference ‖ policy) (nats/token)", interval),
    "log_ratio": ("mean log-ratio (nats)", interval),
}
_MOMENTS = {"before": "before", "after": "after", "difference": "after − before", "reference": "reference"}


def render_report(run: Run, output: Path) -> None:
    """Write the report of ``run`` to ``output`` as one HTML file, atomically.

    Raises:
        OutputError: the file system refused the write.
    """
    write_text(output, render_page(run))


def render_page(run: Run) -> str:
    """Return the report of ``run`` as HTML."""
    content = {
        "headline": headline(run),
        "facts": _facts(run),
        "summary": _summary_table(run),
        "kept": table_of(SCORE_HEADINGS, kept_rows(run.guarded)) if run.guarded else None,
        "explanation": explain_geometry(run),
        "over_time": time_charts(run),
        "layers": layer_charts(run),
        "cosines": cosine_charts(run),
        "score_chart": score_chart(run),
        "score_table": _score_table(run),
        "guard": guard_content(run.guarded) if run.guarded else None,
        "guard_explanation": guard_sentences(run.guarded) if run.guarded else (),
        "refinements": _refinement_table(run),
        "refined_layers": [
            (event, _layer_table(event)) for event in thin(run.refinements, MOST_LAYER_TABLES) if event.layers
        ],
    }
    return render_document("report.html.j2", run, content)


def _facts(run: Run) -> list[tuple[str, str]]:
    train = run.data.get("train")
    counts = train.get("counts") if isinstance(train, Mapping) else None
    pairs = ", ".join(f"{name} {count(n)}" for name, n in counts.items()) if isinstance(counts, Mapping) else None
    return [
        (name, value)
        for name, value in (
            ("Model", run.model),
            ("Weighting", run.weighting),
            *(guard_facts(run.guarded) if run.guarded else ()),
            ("Status", run.status),
            ("Training steps", count(run.steps[-1].step + 1) if run.steps else None),
            ("Training pairs", pairs),
            ("Time", duration(run.seconds) if run.seconds is not None else None),
            ("Seed", str(run.seed) if run.seed is not None else None),
        )
        if value
    ]


def _summary_table(run: Run) -> Table:
    """The summary without the columns that this run has no value for, but always with the accuracies."""
    rows = [row.cells() for row in summary_rows(run)]
    kept = [i for i in range(len(SUMMARY_HEADINGS)) if i < 3 or any(row[i] != ABSENT for row in rows)]
    return Table(tuple(SUMMARY_HEADINGS[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _score_table(run: Run) -> Table | None:
    moments = [moment for moment in _MOMENTS if moment in run.scores]
    rows = []
    for name in (*run.objectives, None):
        found = {
            moment: run.scores[moment].overall if name is None else run.scores[moment].objectives.get(name, {})
            for moment in moments
        }
        metrics = dict.fromkeys(metric for values in found.values() for metric in values)
        pairs = next(
            (n for m in moments if name is not None and (n := run.scores[m].pairs.get(name)) is not None), None
        )
        for metric in [*(key for key in _METRICS if key in metrics), *(key for key in metrics if key not in _METRICS)]:
            title, show = _METRICS.get(metric, (metric, interval))
            cells = [show(found[moment].get(metric)) for moment in moments]
            rows.append((f"{name} ({count(pairs)} pairs)" if pairs else name or "all", title, *cells))
    headings = ("objective", "score", *(_MOMENTS[moment] for moment in moments))
    return Table(headings, tuple(rows)) if rows else None


def _refinement_table(run: Run) -> Table | None:
    names = [name for name in run.objectives if any(name in event.after for event in run.refinements)]
    rows = tuple(
        (
            str(event.step),
            event.mode,
            percent(event.energy_moved),
            percent(event.function_change),
            *(f"{significant(event.before.get(name))} → {significant(event.after.get(name))}" for name in names),
        )
        for event in thin(run.refinements, 200)
    )
    headings = ("step", "mode", "energy moved", "function change", *(f"γ {name}" for name in names))
    return Table(headings, rows) if rows else None


def _layer_table(event: Refinement) -> Table:
    rows = tuple(
        (
            layer.name,
            count(layer.rank),
            percent(layer.energy_moved),
            percent(layer.function_change),
            ", ".join(significant(value) for value in layer.spectrum[:4]) + (" …" if len(layer.spectrum) > 4 else ""),
        )
        for layer in event.layers
    )
    return Table(("layer", "rank", "energy moved", "function change", "leading singular values"), rows)
