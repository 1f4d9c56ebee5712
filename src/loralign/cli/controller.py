"""``loralign controller``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from loralign.cli.experiment import CONTEXT, run_experiment


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "controller",
        context_settings=CONTEXT,
        help="Compare drift budgets with the best fixed weights that a sweep finds for them.",
    )(controller)


@dataclass
class ControllerArguments:
    """Adapt under several drift budgets and under fixed weights, and compare what was attained, gained and spent.

    Beside every budget stands the best fixed choice that keeps to it: the recipe's three weights times one factor.
    """

    budgets: list[float] = field(
        default_factory=lambda: [0.025, 0.05, 0.1, 0.2],
        metadata={"help": "Drift that may be lost, in nats per token; 0.025 0.05 0.1 0.2 by default."},
    )
    factors: list[float] = field(
        default_factory=lambda: [0.0, 0.1, 0.3, 1.0, 3.0, 10.0],
        metadata={"help": "Of the recipe's three weights, in the sweep of fixed ones; 0 0.1 0.3 1 3 10 by default."},
    )


def controller(context: typer.Context) -> None:
    """Run budgets and fixed weights, print the table."""

    def act(recipe: Any, options: Any) -> Any:
        from loralign.experiments.controller import controller as run

        return run(recipe.base, options, recipe.own.budgets, recipe.own.factors)

    run_experiment("controller", ControllerArguments, "adapt", list(context.args), act)
