"""The report for machines and papers: Markdown, JSON and CSV of what the page shows."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterator
from typing import Any

from loralign.report.markdown import markdown_table, markdown_text
from loralign.report.records import Metric
from loralign.report.runs.story import Story
from loralign.report.runs.tables import arms_table, category_groups, category_table, changes_table

FORMATS = ("html", "md", "json", "csv")

CSV_HEADINGS = (
    "arm", "role", "reference", "quantity", "measured_on", "detail", "label", "category", "prompts", "unit",
    "higher_is_better", "value", "low", "high", "change", "change_low", "change_high", "paired",
)  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_markdown(story: Story, *, level: int = 2, commands: bool = True) -> str:
    """Return headline, arms, changes, categories and commands as Markdown, without any answer of a model.

    Args:
        story: what is told.
        level: of the headings.
        commands: whether to say how the runs were made, with paths as they were given.
    """
    mark = "#" * level
    lines = [markdown_text(story.headline), "", *markdown_table(arms_table(story.arms)), ""]
    changes = changes_table(story.arms)
    if changes.rows:
        lines += [f"{mark} Changes against the start", "", *markdown_table(changes), ""]
    for quantity, ground, found in category_groups(story.arms):
        title = f"{quantity.title.capitalize()} by category ({ground.name})"
        lines += [f"{mark} {markdown_text(title)}", "", *markdown_table(category_table(quantity, found)), ""]
    if commands and story.commands:
        shown = [f"    {line}" for _, words in story.commands for line in shlex.join(words).splitlines()]
        lines += [f"{mark} Commands", "", *shown, ""]
    if story.notes:
        lines += [f"{mark} What is missing", "", *(f"- {markdown_text(note)}" for note in story.notes), ""]
    return "\n".join(lines)


def render_json(story: Story) -> str:
    """Return everything as JSON; a setting that is not finite, for which JSON has no word, becomes null."""
    return json.dumps(_finite(story.to_json()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render_csv(story: Story) -> str:
    """Return one row for every score of every arm, and for every category, under :data:`CSV_HEADINGS`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADINGS)
    writer.writerows([_safe(cell) for cell in row] for row in _rows(story))
    return buffer.getvalue()


def _rows(story: Story) -> Iterator[tuple[object, ...]]:
    for arm in story.arms:
        first = (arm.name, arm.role, arm.reference)
        for score in arm.scores:
            quantity, ground = score.quantity, score.ground
            about = (quantity.key, ground.name, ground.detail, "", "", None, quantity.unit, quantity.higher)
            paired = score.paired if score.change is not None else None
            yield (*first, *about, *_ends(score.metric), *_ends(score.change), paired)
        for one in arm.categories:
            quantity, ground = one.quantity, one.ground
            where = (ground.name, ground.detail, one.label, one.category, one.prompts)
            about_it = (quantity.key, *where, quantity.unit, quantity.higher)
            yield (*first, *about_it, *_ends(one.metric), None, None, None, None)


def _ends(metric: Metric | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if metric is None else (metric.value, metric.low, metric.high)


def _safe(cell: object) -> object:
    """The cell for a file; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return cell
