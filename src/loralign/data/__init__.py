"""Preference pairs labelled by objective, the must-survive set, tasks, prompts, and their checks."""

from loralign.data.alignment import load_alignment_data, load_alignment_prompts
from loralign.data.builtin import BUILTIN_OBJECTIVES
from loralign.data.completions import (
    Completion,
    CompletionBatch,
    completion_batches,
    openings,
    tokenise_completions,
)
from loralign.data.lengths import LengthReport, limit_length
from loralign.data.objectives import MAX_OBJECTIVES, check_objective_list
from loralign.data.preferences import Preferences, load_preferences
from loralign.data.prompts import load_prompts
from loralign.data.repeats import overlap
from loralign.data.tasks import load_task

__all__ = [
    "BUILTIN_OBJECTIVES",
    "MAX_OBJECTIVES",
    "Completion",
    "CompletionBatch",
    "LengthReport",
    "Preferences",
    "check_objective_list",
    "completion_batches",
    "limit_length",
    "load_alignment_data",
    "load_alignment_prompts",
    "load_preferences",
    "load_prompts",
    "load_task",
    "openings",
    "overlap",
    "tokenise_completions",
]
