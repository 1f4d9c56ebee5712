"""The page of one run or many: what goes into its template."""

from __future__ import annotations

import base64
import hashlib
import shlex
from importlib.resources import files
from pathlib import Path

from loralign.files import write_text
from loralign.report.document import LONGEST_TEXT, render_document
from loralign.report.format import significant, whole_percent
from loralign.report.runs.charts import category_charts, category_names, curve_charts
from loralign.report.runs.layers import layer_charts
from loralign.report.runs.pareto import pareto_charts
from loralign.report.runs.regressions import Regression
from loralign.report.runs.story import Story
from loralign.report.runs.tables import arms_table, changes_table


def render_story(story: Story, output: Path) -> None:
    """Write the report of ``story`` to ``output`` as one self-contained HTML file, atomically.

    Raises:
        OutputError: the file system refused the write.
    """
    write_text(output, story_page(story))


def story_page(story: Story) -> str:
    """Return the report of ``story`` as HTML."""
    script = _asset("runs.js")
    categories = category_names(story.arms)
    content = {
        "headline": story.headline,
        "told": story.told,
        "facts": _facts(story),
        "arms": arms_table(story.arms),
        "changes": changes_table(story.arms),
        "arm_names": [arm.name for arm in story.arms],
        "category_names": categories,
        "pareto": pareto_charts(story.arms),
        "bars": category_charts(story.arms),
        "maps": layer_charts(story.arms),
        "curves": curve_charts(story.arms),
        "regressions": [
            {
                "arm": [arm.name for arm in story.arms].index(one.arm),
                "category": categories.index(one.category) if one.category in categories else None,
                "told": _told(one),
                "found": one,
            }
            for one in story.regressions
        ],
        "longest_text": LONGEST_TEXT,
        "veiled": story.veiled,
        "commands": "\n".join(shlex.join(command) for _, command in story.commands),
        "runs_script": script,
        "runs_css": _asset("runs.css"),
        "runs_hash": f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'",
    }
    return render_document("runs.html.j2", story, content)


def _asset(name: str) -> str:
    return (files("loralign.report") / "templates" / name).read_text(encoding="utf-8")


def _facts(story: Story) -> list[tuple[str, str]]:
    starts = list(dict.fromkeys(arm.reference for arm in story.arms if arm.reference is not None))
    facts = (("Models", str(len(story.arms))), ("Start" if len(starts) == 1 else "Starts", ", ".join(starts)))
    return [(name, value) for name, value in facts if value]


def _told(one: Regression) -> str:
    """How sure the refusal was, before and after."""
    if one.unit == "probability":
        ends = [whole_percent(one.before_score), whole_percent(one.after_score)]
        return f"probability of a refusal {' → '.join(ends)}"
    ends = [significant(one.before_score), significant(one.after_score)]
    return f"margin of refusing over complying {' → '.join(ends)} nats"
