"""``loralign sensitivity``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from loralign.cli.experiment import CONTEXT, run_experiment


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "sensitivity",
        context_settings=CONTEXT,
        help="Vary rank, sketch, samples and projection of the subspace, and see where protection saturates.",
    )(sensitivity)


@dataclass
class SensitivityArguments:
    """Adapt with subspaces of several ranks, sketches, sample counts and projections, one factor at a time around the
    recipe's own setting, and say from which value on protection does not improve and task gain falls.
    """

    ranks: list[int] = field(
        default_factory=lambda: [8, 16, 32, 64, 128], metadata={"help": "Directions of every layer."}
    )
    sketches: list[int] = field(
        default_factory=lambda: [32, 64, 128], metadata={"help": "Columns of a sketch beyond the largest rank."}
    )
    fisher_sample_counts: list[int] = field(
        default_factory=lambda: [24, 48, 96, 192], metadata={"help": "Samples that the subspace is estimated from."}
    )
    projections: list[str] = field(default_factory=lambda: ["hard", "soft"], metadata={"help": "hard, soft or both."})
    full_grid: bool = field(
        default=False, metadata={"help": "Every combination of the values, not one factor at a time."}
    )
    reestimate: bool = field(
        default=False, metadata={"help": "Estimate subspaces again during runs, as the recipe does."}
    )


def sensitivity(context: typer.Context) -> None:
    """Vary, print the tables."""

    def act(recipe: Any, options: Any) -> Any:
        from loralign.experiments.factors import Factors
        from loralign.experiments.sensitivity import sensitivity as run

        own = recipe.own
        factors = Factors(own.ranks, own.sketches, own.fisher_sample_counts, own.projections)
        return run(recipe.base, options, factors, full_grid=own.full_grid, reestimate=own.reestimate)

    run_experiment("sensitivity", SensitivityArguments, "adapt", context.args, act)
