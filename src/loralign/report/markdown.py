"""Text and tables as Markdown in which nothing that a model or a file is called can become markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loralign.report.theme import Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&#!$])")


def markdown_table(table: Table) -> list[str]:
    """The lines of a table."""
    rows: Sequence[Sequence[str]] = (table.headings, ["---"] * len(table.headings), *table.rows)
    return [
        f"| {' | '.join(cell if index == 1 else markdown_text(cell) for cell in row)} |"
        for index, row in enumerate(rows)
    ]


def markdown_text(text: str) -> str:
    """Text on one line in which Markdown finds no markup; intervals keep their brackets."""
    flat = " ".join(text.split())
    kept = re.split(r"(\[−?[\d.e+−-]+, −?[\d.e+−-]+\](?![(\[:]))", flat)
    return "".join(
        part if index % 2 else _SPECIAL.sub(r"\\\1", part).replace("://", ":\u200b//")
        for index, part in enumerate(kept)
    )
