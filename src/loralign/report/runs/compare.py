"""The table of arms for a terminal, with as many arms side by side as there is room for."""

from __future__ import annotations

from collections.abc import Iterator

from loralign.report.runs.story import Story
from loralign.report.runs.tables import arms_table
from loralign.report.theme import Table

_BORDERS = 3
"""Columns of the terminal that a column of the table takes besides its text."""


def comparison_tables(story: Story, width: int) -> list[Table]:
    """Return the table of arms in as many parts as the width asks for, each with the names of the scores.

    Args:
        story: what is compared.
        width: of the terminal, in characters.
    """
    whole = arms_table(story.arms)
    columns = list(zip(whole.headings, *whole.rows, strict=True))
    titles = columns[0]
    first = max(map(len, titles)) + _BORDERS
    parts = []
    for group in _groups(columns[1:], width - first - 1):
        headings, *rows = zip(titles, *group, strict=True)
        parts.append(Table(headings, tuple(rows)))
    return parts


def _groups(columns: list[tuple[str, ...]], room: int) -> Iterator[list[tuple[str, ...]]]:
    """Take as many columns together as fit, at least one."""
    group: list[tuple[str, ...]] = []
    used = 0
    for column in columns:
        needed = max(map(len, column)) + _BORDERS
        if group and used + needed > room:
            yield group
            group, used = [], 0
        group.append(column)
        used += needed
    if group:
        yield group
