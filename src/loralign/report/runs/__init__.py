"""One report of one run or many: adaptations, alignments, repairs, checks and task scores of the models in them."""

from __future__ import annotations

from loralign.report.runs.card import update_card
from loralign.report.runs.compare import comparison_tables
from loralign.report.runs.formats import FORMATS, render_csv, render_json, render_markdown
from loralign.report.runs.page import render_story, story_page
from loralign.report.runs.story import Story, load_story, make_story

__all__ = [
    "FORMATS",
    "Story",
    "comparison_tables",
    "load_story",
    "make_story",
    "render_csv",
    "render_json",
    "render_markdown",
    "render_story",
    "story_page",
    "update_card",
]
