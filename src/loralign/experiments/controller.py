"""``loralign controller``: a drift budget that sets the weights, against the best weights that a sweep finds for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loralign.errors import ConfigError
from loralign.experiments.cell import CellSettings
from loralign.experiments.controller_page import WEIGHTS, against_sweep
from loralign.experiments.experiment import Arm, ExperimentOptions, run_arms, start_of
from loralign.experiments.finding import Finding
from loralign.experiments.subspaces import SubspaceSpec, estimated


def controller(
    base: CellSettings,
    options: ExperimentOptions,
    budgets: Sequence[float],
    factors: Sequence[float],
) -> Finding:
    """Adapt under every budget, and under fixed weights, and put the best of those that keep to a budget beside it.

    Args:
        base: recipe of ``loralign adapt`` with the weights that the factors multiply.
        options: seeds, places, measures.
        budgets: of drift, in nats per token.
        factors: of the three weights, common to them.

    Raises:
        LoralignError: any fault of the recipe, the budgets or the factors; no cell finished.
    """
    held, fixed = budget_arms(budgets), weight_arms(base, factors)
    base = start_of(base, options.output)
    if base["guard"] == "auto":
        # Once for all arms and seeds, so that they differ in nothing else.
        base = {**base, "guard": str(estimated(SubspaceSpec.of(base), options.output))}
    results = run_arms("controller", "adapt", base, [*held, *fixed], options)
    return against_sweep(results[: len(held)], results[len(held) :])


def budget_arms(budgets: Sequence[float]) -> list[Arm]:
    """An arm for every budget, in their order.

    Raises:
        ConfigError: there is none, one is not positive, or one stands there twice.
    """
    _check("--budgets", budgets, least="above 0", allowed=all(one > 0 for one in budgets))
    return [Arm(f"budget {one:g}", {"drift_budget": float(one)}) for one in sorted(budgets)]


def weight_arms(base: CellSettings, factors: Sequence[float]) -> list[Arm]:
    """An arm for every factor in their order, of all three weights of the recipe and without a budget.

    Raises:
        ConfigError: there is none, one is negative, or one stands there twice; the recipe's weights are all zero, or
            act on nothing.
    """
    _check("--factors", factors, least="at least 0", allowed=all(one >= 0 for one in factors))
    if base["guard_mode"] != "penalty":
        mode = base["guard_mode"]
        raise ConfigError(f"{mode} has no weights to multiply", place="--guard_mode", fix="use penalty")
    weights = {name: float(base[name]) for name in WEIGHTS}
    if not any(weights.values()):
        raise ConfigError(
            f"{', '.join(WEIGHTS)} are all 0, so a factor changes nothing",
            place="--factors",
            fix="give the weights to be multiplied",
        )
    return [
        Arm(f"λ × {one:g}", {"drift_budget": None, **{name: one * weight for name, weight in weights.items()}})
        for one in sorted(factors)
    ]


def _check(place: str, values: Sequence[float], *, least: str, allowed: bool) -> None:
    if not values or not allowed or not all(map(math.isfinite, values)) or len(set(values)) < len(values):
        told = ", ".join(f"{one:g}" for one in values) or "nothing"
        raise ConfigError(f"{told} will not do", place=place, fix=f"give different finite numbers {least}")
