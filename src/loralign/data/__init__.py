"""Preference pairs labelled by objective, prompts, and their checks."""

from loralign.data.builtin import BUILTIN_OBJECTIVES
from loralign.data.lengths import LengthReport, limit_length
from loralign.data.objectives import MAX_OBJECTIVES, check_objective_list
from loralign.data.preferences import Preferences, load_preferences
from loralign.data.prompts import load_prompts

__all__ = [
    "BUILTIN_OBJECTIVES",
    "MAX_OBJECTIVES",
    "LengthReport",
    "Preferences",
    "check_objective_list",
    "limit_length",
    "load_preferences",
    "load_prompts",
]
