"""Ablations: the arms that the two methods are made of, and their peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loralign.errors import ConfigError
from loralign.experiments.experiment import Arm
from loralign.runs.options import COMMON_DEFAULTS

_NOTHING: dict[str, Any] = {"lambda_alignment": 0.0, "lambda_stability": 0.0, "lambda_collision": 0.0}
# What a recipe may hold for its own run, and would be in every arm but is named in none.
_FREE: dict[str, Any] = {"drift_budget": None}
_UNREFINED: dict[str, Any] = {"refine_every": 0, "refine_at_start": False}
# Between two names of one arm.
_ALSO = " or "
# Steps between refinements of a run whose length is stated in passes over the data.
_REFINE_EVERY = 20

ALIGN_WEIGHTINGS = ("uniform", "norm", "geo", "match")
"""Weightings of the ablation, each with every refinement."""

ALIGN_REFINEMENTS = {"refactor": "condition", "accumulated": "accumulated", "gradient": "gradient"}
"""Refinements of the ablation by name, and their modes."""

ALIGN_PEERS = ("upgrad", "mgda", "cagrad", "pcgrad")
"""TorchJD's weightings, from the Gramian of LoRA's gradients."""


def align_arms(base: Mapping[str, Any]) -> list[Arm]:
    """Uniform, Norm, Geo and match, each without and with the three refinements, and TorchJD's peers.

    Arms without refinement have none at the start either. The others refine as often as the recipe does, or where it
    does not, each third of the run; of a run that is counted in epochs, every 20 steps.

    Args:
        base: recipe of ``loralign align``.
    """
    every = _refinement_steps(base)
    arms = []
    for weighting in ALIGN_WEIGHTINGS:
        arms.append(Arm(weighting, {"weighting": weighting, **_UNREFINED}))
        arms += [
            Arm(f"{weighting} + {name}", {"weighting": weighting, "refine_mode": mode, "refine_every": every})
            for name, mode in ALIGN_REFINEMENTS.items()
        ]
    return arms + [Arm(peer, {"weighting": peer, **_UNREFINED}) for peer in ALIGN_PEERS]


def _refinement_steps(base: Mapping[str, Any]) -> int:
    # A recipe names what differs from the command's defaults.
    own, steps = int(base["refine_every"]), int(base.get("max_steps", COMMON_DEFAULTS["max_steps"]))
    return own or (max(1, steps // 3) if steps > 0 else _REFINE_EVERY)


def guard_arms(base: Mapping[str, Any]) -> list[Arm]:
    """The ladder of docs/adapting.md, each collision term taken away alone, and the projections.

    The ladder adds one term after the other with the base recipe's own weights: task loss, alignment, stability,
    Riemannian overlap, geodesic; the last is the full method. ``full − overlap`` removes one collision term and leaves
    the other its weight; without the geodesic one the full method is the rung before it, which bears both names. No
    arm has a budget, which would set the weights, and those that are not called soft project hard.

    Args:
        base: recipe of ``loralign adapt``, with the weights of the full method.

    Raises:
        ConfigError: a weight that the ladder is to add is zero in the recipe.
    """
    names = ("lambda_alignment", "lambda_stability", "lambda_collision", "collision_alpha")
    alignment, stability, collision, alpha = (float(base[name]) for name in names)
    for name, value in zip(names, (alignment, stability, collision, alpha), strict=True):
        if value == 0 or (name == "collision_alpha" and value == 1):
            raise ConfigError(
                f"{value} leaves a term of the full method out", place=name, fix="give the weights of the full method"
            )
    first = {**_FREE, "guard_mode": "penalty", "guard_projection": "hard", **_NOTHING, "lambda_alignment": alignment}
    second = {**first, "lambda_stability": stability}
    overlap = {**second, "lambda_collision": collision * alpha, "collision_alpha": 1.0}
    geodesic = {**second, "lambda_collision": collision * (1 - alpha), "collision_alpha": 0.0}
    full = {**second, "lambda_collision": collision, "collision_alpha": alpha}
    project = {**_FREE, "guard_mode": "project", "guard_projection": "hard", **_NOTHING}
    return [
        Arm("plain", {**_FREE, "guard": "none"}),
        Arm("+ alignment", first),
        Arm("+ stability", second),
        # The rung before the last is the full method without its geodesic term.
        Arm(f"+ overlap{_ALSO}full − geodesic", overlap),
        Arm("full", full),
        Arm("full − overlap", geodesic),
        Arm("full soft", {**full, "guard_projection": "soft"}),
        Arm("project", project),
        Arm("project soft", {**project, "guard_projection": "soft"}),
    ]


def chosen(arms: Sequence[Arm], names: Sequence[str] | None) -> list[Arm]:
    """The arms of these names, in their order, or all.

    Args:
        arms: to choose among.
        names: with a hyphen for a minus sign, too; of an arm with two names either.

    Raises:
        ConfigError: an unknown name.
    """
    if not names:
        return list(arms)
    known = {name: arm for arm in arms for name in (arm.name, *arm.name.split(_ALSO))}
    found: dict[str, Arm] = {}
    for name in names:
        arm = known.get(name.replace(" - ", " − "))
        if arm is None:
            choices = ", ".join(arm.name for arm in arms)
            raise ConfigError(f"{name!r} is no arm", place="--arms", fix=f"choose among {choices}")
        found[arm.name] = arm
    return list(found.values())
