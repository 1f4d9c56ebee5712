"""Whole runs: from a recipe to an adapter, its scores and a report."""

from loralign.runs.adapt import AdaptResult, run_adaptation
from loralign.runs.adapt_recipe import AdaptArguments, AdaptRecipe, parse_adapt_recipe
from loralign.runs.align import AlignResult, run_alignment
from loralign.runs.diagnose import Diagnosis, diagnose
from loralign.runs.evaluate import evaluate_adapter
from loralign.runs.guarding import describe_subspace
from loralign.runs.recipe import AlignArguments, Recipe, parse_recipe
from loralign.runs.refine import refine_adapter
from loralign.runs.repair import RepairOptions, RepairRun, repair_adapter
from loralign.runs.subspace import estimate_subspace

__all__ = [
    "AdaptArguments",
    "AdaptRecipe",
    "AdaptResult",
    "AlignArguments",
    "AlignResult",
    "Diagnosis",
    "Recipe",
    "RepairOptions",
    "RepairRun",
    "describe_subspace",
    "diagnose",
    "estimate_subspace",
    "evaluate_adapter",
    "parse_adapt_recipe",
    "parse_recipe",
    "refine_adapter",
    "repair_adapter",
    "run_adaptation",
    "run_alignment",
]
