"""``loralign stability``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from loralign.cli.experiment import CONTEXT, run_experiment


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "stability",
        context_settings=CONTEXT,
        help="Compare subspaces and their part of an adapter's update between seeds and halves of the data.",
    )(stability)


@dataclass
class StabilityArguments:
    """Estimate the alignment subspace with every seed and on halves of the data, adapt with every seed, guarded and
    plain, and compare subspaces and ΔW_A layer by layer. At least two --seeds. With --halve_task true adapt on halves
    of the task data as well.
    """

    threshold: float = field(
        default=0.85, metadata={"help": "Agreement that layers in the middle and deep thirds are to pass."}
    )
    halve_task: bool = field(
        default=False,
        metadata={"help": "Compare ΔW_A between two disjoint halves of the task data too; three times the cells."},
    )


def stability(context: typer.Context) -> None:
    """Compare, print the tables."""

    def act(recipe: Any, options: Any) -> Any:
        from loralign.experiments.stability import stability as run

        return run(recipe.base, options, threshold=recipe.own.threshold, halve_task=recipe.own.halve_task)

    run_experiment("stability", StabilityArguments, "adapt", context.args, act)
