"""``loralign compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from loralign.cli.show import console, print_table

if TYPE_CHECKING:
    from loralign.report.runs import Story


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", help="Print the scores of several runs side by side, with intervals.")(compare)


def compare(
    runs: list[str] = typer.Argument(help="Output of adapt, align, repair, driftcheck run or task scores; repeatable."),
) -> None:
    """Print the table of a report, scores as rows and models as columns, and its headline."""
    from loralign.report.runs import load_story

    show_story(load_story(runs))


def show_story(story: Story) -> None:
    """The same for a story that is read already."""
    from loralign.report.runs import comparison_tables

    for number, table in enumerate(comparison_tables(story, console.width)):
        print_table("Scores with 95 % intervals" if number == 0 else "", table.headings, table.rows)
    console.print()
    for line in story.told:
        console.print(line, markup=False)
    for note in story.notes:
        console.print(f"note: {note}", markup=False)
