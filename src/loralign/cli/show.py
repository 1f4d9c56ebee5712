"""Tables and lists in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields

from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=False)


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position == 0 else "right", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    console.print(table)


def print_sentences(sentences: Iterable[str]) -> None:
    """Print sentences as a list."""
    for sentence in sentences:
        console.print(f"• {sentence}", markup=False)


def field_lines(kind: type) -> list[str]:
    """One line of help for every field of a configuration."""
    lines = []
    for one in fields(kind):
        default = "" if one.default is MISSING else one.default
        suffix = f" [{default}]" if default not in ("", None) else ""
        lines.append(f"  --{one.name:<26} {one.metadata.get('help', '')}{suffix}")
    return lines
