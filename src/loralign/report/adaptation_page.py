"""The page of an adaptation: what goes into its template."""

from __future__ import annotations

from pathlib import Path

from loralign.files import write_text
from loralign.report.adaptation_charts import adaptation_charts, step_text
from loralign.report.adaptation_maps import safety_chart, subspace_charts
from loralign.report.adaptation_outcome import SCORE_HEADINGS, score_rows
from loralign.report.adaptation_records import Adaptation
from loralign.report.adaptation_words import adaptation_headline, explain_guard
from loralign.report.coerce import number
from loralign.report.document import plain, render_document
from loralign.report.format import count, duration, significant
from loralign.report.theme import Table, thin

_MODES = {"penalty": "penalties", "project": "projection", "measure": "only measured"}


def render_adaptation(run: Adaptation, output: Path) -> None:
    """Write the page of ``run`` to ``output`` as one self-contained HTML file, atomically.

    Raises:
        OutputError: the file system refused the write.
    """
    write_text(output, adaptation_page(run))


def adaptation_page(run: Adaptation) -> str:
    """Return the page of ``run`` as HTML."""
    content = {
        "headline": adaptation_headline(run),
        "facts": _facts(run),
        "summary": _table(SCORE_HEADINGS, score_rows(run)),
        "explanation": explain_guard(run),
        "over_time": adaptation_charts(run),
        "safety": safety_chart(run),
        "subspace": subspace_charts(run),
        "source": _table(("fact", "value"), _source(run)),
        "reestimates": _table(
            ("step", "mean similarity", "least of any layer"),
            [
                (str(one.step), significant(one.similarity), significant(one.least))
                for one in thin(run.reestimates, 200)
            ],
        ),
        "warnings": _table(
            ("step", "what was seen", "what to change"),
            [(step_text(one.step), one.message or one.code, one.fix) for one in thin(run.warnings, 200)],
        ),
    }
    return render_document("adaptation.html.j2", run, content)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table | None:
    return Table(headings, tuple(rows)) if rows else None


def _facts(run: Adaptation) -> list[tuple[str, str]]:
    mode = f" ({_MODES[run.mode]})" if run.mode in _MODES else ""
    facts = (
        ("Model", run.model),
        ("Guard", f"{run.guard}{mode}"),
        ("Budget", f"{significant(run.budget)} nats per token" if run.budget is not None else None),
        ("Status", run.status),
        ("Training steps", count(run.taken) if run.taken is not None else None),
        ("Training samples", _counted(run, "train")),
        ("Validation samples", _counted(run, "validation")),
        ("Probe prompts", _counted(run, "probe")),
        ("Time", duration(run.seconds) if run.seconds is not None else None),
        ("Seed", str(run.seed) if run.seed is not None else None),
    )
    return [(name, value) for name, value in facts if value]


def _counted(run: Adaptation, part: str) -> str | None:
    value = number(run.data.get(part))
    return None if value is None else count(value)


def _source(run: Adaptation) -> list[tuple[str, ...]]:
    """Where the subspace comes from, as far as it says so in plain values."""
    facts = run.subspace.facts if run.subspace else {}
    return [
        (name.replace("_", " "), significant(value) if isinstance(value, float) else plain(value))
        for name, value in facts.items()
        if not isinstance(value, (dict, list))
    ]
