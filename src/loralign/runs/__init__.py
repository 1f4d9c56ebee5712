"""Whole runs: from a recipe to an adapter, its scores and a report."""

from loralign.runs.align import AlignResult, run_alignment
from loralign.runs.diagnose import Diagnosis, diagnose
from loralign.runs.evaluate import evaluate_adapter
from loralign.runs.recipe import AlignArguments, Recipe, parse_recipe
from loralign.runs.refine import refine_adapter

__all__ = [
    "AlignArguments",
    "AlignResult",
    "Diagnosis",
    "Recipe",
    "diagnose",
    "evaluate_adapter",
    "parse_recipe",
    "refine_adapter",
    "run_alignment",
]
