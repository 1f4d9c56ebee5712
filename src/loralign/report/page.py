"""Rendering a run as one self-contained HTML page.

Everything that comes from the run reaches the page through Jinja's automatic escaping or as JSON with ``<``, ``>`` and
``&`` escaped. Beyond that, the page's content security policy runs only the scripts whose hashes it names and allows no
connection, so that even a mistake in the escaping could neither run code nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from loralign.files import write_text
from loralign.report.charts import time_charts
from loralign.report.format import ABSENT, count, duration, percent, significant
from loralign.report.maps import cosine_charts, layer_charts, score_chart
from loralign.report.records import Refinement, Run
from loralign.report.theme import Chart, Table, thin
from loralign.report.words import SUMMARY_HEADINGS, explain_geometry, headline, interval, percent_interval, summary_rows

MOST_SAMPLES = 24
"""Sample answers shown at most."""

LONGEST_TEXT = 6000
"""Characters of one prompt or answer shown at most."""

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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loralign.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = _figure_json
    plotly, script, css = get_plotlyjs(), _asset("report.js"), _asset("report.css")
    return environment.get_template("report.html.j2").render(
        run=run,
        headline=headline(run),
        summary=_summary_table(run),
        explanation=explain_geometry(run),
        over_time=time_charts(run),
        layers=layer_charts(run),
        cosines=cosine_charts(run),
        score_chart=score_chart(run),
        score_table=_score_table(run),
        refinements=_refinement_table(run),
        refined_layers=[
            (event, _layer_table(event)) for event in thin(run.refinements, MOST_LAYER_TABLES) if event.layers
        ],
        samples=run.samples[:MOST_SAMPLES],
        hidden_samples=max(0, len(run.samples) - MOST_SAMPLES),
        longest=LONGEST_TEXT,
        facts=_facts(run),
        settings={
            title: Table(("setting", "value"), rows)
            for title, value in (("Configuration", run.config), ("Data", run.data), ("Environment", run.environment))
            if (rows := tuple(_flatten(value)))
        },
        command=shlex.join(run.command),
        css=css,
        plotly=plotly,
        script=script,
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
    )


def _asset(name: str) -> str:
    return (files("loralign.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _figure_json(chart: Chart) -> str:
    """Return a figure as JSON that cannot end the element it stands in."""
    text: str = chart.figure.to_json()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _facts(run: Run) -> list[tuple[str, str]]:
    train = run.data.get("train")
    counts = train.get("counts") if isinstance(train, Mapping) else None
    pairs = ", ".join(f"{name} {count(n)}" for name, n in counts.items()) if isinstance(counts, Mapping) else None
    return [
        (name, value)
        for name, value in (
            ("Model", run.model),
            ("Weighting", run.weighting),
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


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of nested settings with its dotted path; short lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}[{index}]")
    elif isinstance(value, (Mapping, list)):
        yield path, ", ".join(map(_plain, value)) or "none"
    else:
        yield path, _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
