"""What the page of a guarded run shows of its guard, whatever the run trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loralign.report.coerce import number
from loralign.report.document import plain
from loralign.report.format import count, significant
from loralign.report.guard_charts import guard_charts, step_text
from loralign.report.guard_maps import safety_chart, subspace_charts
from loralign.report.guard_records import GuardedRun
from loralign.report.theme import Table, thin

_MODES = {"penalty": "penalties", "project": "projection", "measure": "only measured"}


def guard_content(run: GuardedRun) -> dict[str, Any]:
    """Return what the macros of ``guard.html.j2`` draw: charts and tables."""
    return {
        "mode": run.mode,
        "has_subspace": run.subspace is not None,
        "over_time": guard_charts(run),
        "safety": safety_chart(run),
        "subspace": subspace_charts(run),
        "source": table_of(("fact", "value"), _source(run)),
        "reestimates": table_of(
            ("step", "mean similarity", "least of any layer"),
            [
                (str(one.step), significant(one.similarity), significant(one.least))
                for one in thin(run.reestimates, 200)
            ],
        ),
        "warnings": table_of(
            ("step", "what was seen", "what to change"),
            [(step_text(one.step), one.message or one.code, one.fix) for one in thin(run.warnings, 200)],
        ),
    }


def guard_facts(run: GuardedRun) -> list[tuple[str, str]]:
    """Return which guard it was, its budget and the size of its probe, as far as they are known."""
    mode = f" ({_MODES[run.mode]})" if run.mode in _MODES else ""
    probe = number(run.data.get("probe"))
    facts = (
        ("Guard", f"{run.guard}{mode}"),
        ("Budget", None if run.budget is None else f"{significant(run.budget)} nats per token"),
        ("Probe prompts", None if probe is None else count(probe)),
    )
    return [(name, value) for name, value in facts if value]


def table_of(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table | None:
    """Return a table, ``None`` without rows."""
    return Table(headings, tuple(rows)) if rows else None


def _source(run: GuardedRun) -> list[tuple[str, ...]]:
    """Where the subspace comes from, as far as it says so in plain values."""
    facts = run.subspace.facts if run.subspace else {}
    return [
        (name.replace("_", " "), significant(value) if isinstance(value, float) else plain(value))
        for name, value in facts.items()
        if not isinstance(value, (dict, list))
    ]
