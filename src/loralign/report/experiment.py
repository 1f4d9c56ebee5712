"""The page of an experiment: its headline, its tables, its charts, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loralign.files import write_text
from loralign.report.document import render_page, setting_rows
from loralign.report.markdown import markdown_table, markdown_text
from loralign.report.theme import Chart, Table


@dataclass(frozen=True)
class ExperimentPage:
    """What an experiment found, ready to be shown.

    Attributes:
        title: of the experiment, such as ``ablate guard``.
        headline: the finding in a sentence.
        facts: name and value, such as models, seeds, cells.
        tables: title and table, the most telling first.
        charts: in their order.
        notes: what is missing or must be known to read the tables.
        command: the words that repeat it.
        settings: the base recipe.
    """

    title: str
    headline: str
    facts: Sequence[tuple[str, str]]
    tables: Sequence[tuple[str, Table]]
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    command: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def render_experiment(page: ExperimentPage, output: Path) -> None:
    """Write the page as one self-contained HTML file, atomically.

    Raises:
        OutputError: the file system refused the write.
    """
    write_text(output, experiment_html(page))


def experiment_html(page: ExperimentPage) -> str:
    """The page as HTML."""
    content = {
        "page": page,
        "command": shlex.join(page.command),
        "settings": Table(("setting", "value"), setting_rows(page.settings)),
    }
    return render_page("experiment.html.j2", content)


def experiment_markdown(page: ExperimentPage) -> str:
    """The same as Markdown: headline, facts, tables and remarks, without charts."""
    lines = [f"# {markdown_text(page.title)}", "", markdown_text(page.headline), ""]
    lines += [f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in page.facts]
    for title, table in page.tables:
        lines += ["", f"## {markdown_text(title)}", "", *markdown_table(table)]
    if page.notes:
        lines += ["", "## Remarks", "", *(f"- {markdown_text(note)}" for note in page.notes)]
    if page.command:
        lines += ["", "## Command", "", f"    {shlex.join(page.command)}"]
    return "\n".join(lines) + "\n"
