"""Ablations: the arms that the two methods are made of, and their peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loralign.errors import ConfigError
from loralign.experiments.experiment import Arm

_NOTHING: dict[str, Any] = {"lambda_alignment": 0.0, "lambda_stability": 0.0, "lambda_collision": 0.0}
_MIDWAY: dict[str, Any] = {"refine_every": 20}

ALIGN_WEIGHTINGS = ("uniform", "norm", "geo", "match")
"""Weightings of the ablation, each with every refinement."""

ALIGN_REFINEMENTS: dict[str, dict[str, Any]] = {
    "": {},
    "refactor": {"refine_mode": "condition", **_MIDWAY},
    "accumulated": {"refine_mode": "accumulated", **_MIDWAY},
    "gradient": {"refine_mode": "gradient", **_MIDWAY},
}
"""Refinements of the ablation by name; the first is none."""

ALIGN_PEERS = ("upgrad", "mgda", "cagrad", "pcgrad")
"""TorchJD's weightings, from the Gramian of LoRA's gradients."""


def align_arms(*, refine_every: int | None = None) -> list[Arm]:
    """Uniform, Norm, Geo and match, each without and with the three refinements, and TorchJD's peers.

    Args:
        refine_every: steps between two refinements.
    """
    arms = []
    for weighting in ALIGN_WEIGHTINGS:
        for name, refinement in ALIGN_REFINEMENTS.items():
            overrides = {"weighting": weighting, **refinement}
            if refinement and refine_every is not None:
                overrides["refine_every"] = refine_every
            arms.append(Arm(f"{weighting} + {name}" if name else weighting, overrides))
    return arms + [Arm(peer, {"weighting": peer}) for peer in ALIGN_PEERS]


def guard_arms(base: dict[str, Any]) -> list[Arm]:
    """The ladder of alignguard.md, each collision term taken away alone, and the projections.

    The ladder adds one term after the other with the base recipe's own weights: task loss, alignment, stability,
    Riemannian overlap, geodesic; the last is the full method. ``full − overlap`` and ``full − geodesic`` remove one
    collision term and leave the other its weight.

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
    plain = {"guard_mode": "penalty"}
    first = {**plain, **_NOTHING, "lambda_alignment": alignment}
    second = {**first, "lambda_stability": stability}
    overlap = {**second, "lambda_collision": collision * alpha, "collision_alpha": 1.0}
    geodesic = {**second, "lambda_collision": collision * (1 - alpha), "collision_alpha": 0.0}
    full = {**second, "lambda_collision": collision, "collision_alpha": alpha}
    return [
        Arm("plain", {"guard": "none"}),
        Arm("+ alignment", first),
        Arm("+ stability", second),
        Arm("+ overlap", overlap),
        Arm("full", full),
        # The rung before the last is the full method without its geodesic term already.
        Arm("full − overlap", geodesic),
        Arm("full soft", {**full, "guard_projection": "soft"}),
        Arm("project", {"guard_mode": "project", **_NOTHING}),
        Arm("project soft", {"guard_mode": "project", **_NOTHING, "guard_projection": "soft"}),
    ]


def chosen(arms: Sequence[Arm], names: Sequence[str] | None) -> list[Arm]:
    """The arms of these names, in their order, or all.

    Raises:
        ConfigError: an unknown name.
    """
    if not names:
        return list(arms)
    known = {arm.name: arm for arm in arms}
    for name in names:
        if name not in known:
            raise ConfigError(f"{name!r} is no arm", place="--arms", fix=f"choose among {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]
