"""The page of an adaptation: what goes into its template."""

from __future__ import annotations

from pathlib import Path

from loralign.files import write_text
from loralign.report.adaptation_charts import loss_chart
from loralign.report.adaptation_outcome import score_rows
from loralign.report.adaptation_records import Adaptation
from loralign.report.adaptation_words import adaptation_headline, explain_guard
from loralign.report.coerce import number
from loralign.report.document import render_document
from loralign.report.format import count, duration
from loralign.report.guard_outcome import SCORE_HEADINGS
from loralign.report.guard_page import guard_content, guard_facts, table_of


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
        "summary": table_of(SCORE_HEADINGS, score_rows(run)),
        "explanation": explain_guard(run),
        "guard": guard_content(run),
        "loss": loss_chart(run),
    }
    return render_document("adaptation.html.j2", run, content)


def _facts(run: Adaptation) -> list[tuple[str, str]]:
    facts = (
        ("Model", run.model),
        *guard_facts(run),
        ("Status", run.status),
        ("Training steps", count(run.taken) if run.taken is not None else None),
        ("Training samples", _counted(run, "train")),
        ("Validation samples", _counted(run, "validation")),
        ("Time", duration(run.seconds) if run.seconds is not None else None),
        ("Seed", str(run.seed) if run.seed is not None else None),
    )
    return [(name, value) for name, value in facts if value]


def _counted(run: Adaptation, part: str) -> str | None:
    value = number(run.data.get(part))
    return None if value is None else count(value)
