"""The report of a run: reading its directory, putting it into words, and drawing one self-contained HTML page."""

from __future__ import annotations

from loralign.report.adaptation import load_adaptation
from loralign.report.adaptation_outcome import score_rows
from loralign.report.adaptation_page import render_adaptation
from loralign.report.adaptation_records import Adaptation
from loralign.report.adaptation_words import adaptation_headline, explain_guard
from loralign.report.alignment_records import Run
from loralign.report.data import load_run
from loralign.report.diagnosis import diagnosis_sentences
from loralign.report.energy import render_energy
from loralign.report.guard_outcome import SCORE_HEADINGS
from loralign.report.page import render_page, render_report
from loralign.report.shared import shared_sentences
from loralign.report.words import SUMMARY_HEADINGS, SummaryRow, explain_geometry, headline, summary_rows

__all__ = [
    "SCORE_HEADINGS",
    "SUMMARY_HEADINGS",
    "Adaptation",
    "Run",
    "SummaryRow",
    "adaptation_headline",
    "diagnosis_sentences",
    "explain_geometry",
    "explain_guard",
    "headline",
    "load_adaptation",
    "load_run",
    "render_adaptation",
    "render_energy",
    "render_page",
    "render_report",
    "score_rows",
    "shared_sentences",
    "summary_rows",
]
