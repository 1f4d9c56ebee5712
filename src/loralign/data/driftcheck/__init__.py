"""DRIFTCHECK sets: labelled prompts on which a model's refusals are compared before and after an adaptation."""

from loralign.data.driftcheck.build import DEFAULT_PARTS, build_driftcheck
from loralign.data.driftcheck.prompt import GENERAL, PARTS, DriftPrompt, DriftSet
from loralign.data.driftcheck.storage import load_build_report, load_driftcheck

__all__ = [
    "DEFAULT_PARTS",
    "GENERAL",
    "PARTS",
    "DriftPrompt",
    "DriftSet",
    "build_driftcheck",
    "load_build_report",
    "load_driftcheck",
]
