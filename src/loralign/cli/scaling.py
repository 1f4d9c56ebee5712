"""``loralign scaling``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from loralign.cli.experiment import CONTEXT, run_experiment


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "scaling",
        context_settings=CONTEXT,
        help="Fit the forgetting law to runs on several amounts of data and model sizes, plain and guarded.",
    )(scaling)


@dataclass
class ScalingArguments:
    """Adapt models of several sizes to several amounts of data, plain and guarded, measure what each run forgot of text
    that its start knew, and fit L_pt = L⁰_pt + A · D_ft^β / N^α + E to compare A with the guard and without.

    With --guard none there are plain runs only.
    """

    pretraining_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Text that the models knew before; files, directories or hub names as for --data, or own for what "
            "each model samples itself. Needed."
        },
    )
    pretraining_samples: int = field(default=100, metadata={"help": "Most rows of it, or texts sampled."})
    models: list[str] = field(
        default_factory=list, metadata={"help": "Models of several sizes; by default the recipe's own."}
    )
    amounts: list[int] = field(
        default_factory=lambda: [10, 20, 40, 80], metadata={"help": "Optimiser steps, a run of its own each."}
    )


def scaling(context: typer.Context) -> None:
    """Run, fit, print the tables."""

    def act(recipe: Any, options: Any) -> Any:
        from loralign.experiments.scaling import ScalingPlan
        from loralign.experiments.scaling_page import scaling as run

        own = recipe.own
        plan = ScalingPlan(tuple(own.pretraining_data), tuple(own.amounts), tuple(own.models), own.pretraining_samples)
        return run(recipe.base, options, plan)

    run_experiment("scaling", ScalingArguments, "adapt", context.args, act)
