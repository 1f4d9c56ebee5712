"""The report of a run: reading its directory, putting it into words, and drawing one self-contained HTML page."""

from __future__ import annotations

from loralign.report.data import load_run
from loralign.report.diagnosis import diagnosis_sentences
from loralign.report.page import render_page, render_report
from loralign.report.records import Run
from loralign.report.words import SUMMARY_HEADINGS, SummaryRow, explain_geometry, headline, summary_rows

__all__ = [
    "SUMMARY_HEADINGS",
    "Run",
    "SummaryRow",
    "diagnosis_sentences",
    "explain_geometry",
    "headline",
    "load_run",
    "render_page",
    "render_report",
    "summary_rows",
]
