"""Mending an adapter that was trained without care (docs/adapting.md, Repair): no training, an ordinary adapter."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from loralign.errors import ConfigError
from loralign.guard.peers import PeerOptions, SafeLoraRepairer, ScaleRepairer
from loralign.guard.projection import update_shares
from loralign.guard.repair_intruders import IntruderRepairer
from loralign.guard.repair_methods import ProjectionRepairer, RankRepairer, Repairer
from loralign.guard.repair_report import RepairReport
from loralign.guard.repair_search import Trial, check_budget, least_strength
from loralign.guard.repair_work import RepairWork
from loralign.guard.subspace import AlignmentSubspace, LayerSubspace, Projection
from loralign.lora import LoraFactors, canonical_name, lora_layers

METHODS = ("fisher", "random", "scale", "safe_lora", "intruder")
PROJECTIONS = ("hard", "soft")


def repair(
    model: nn.Module,
    subspace: AlignmentSubspace | None,
    *,
    method: str = "fisher",
    strength: float | Mapping[str, float] | None = None,
    drift_budget: float | None = None,
    measure: Callable[[], float] | None = None,
    per_layer: bool = False,
    by_rank: bool = False,
    projection: Projection = "hard",
    partial: bool = False,
    unaligned: nn.Module | None = None,
    options: PeerOptions | None = None,
    tolerance: float = 0.02,
    max_measurements: int = 8,
    seed: int = 0,
) -> RepairReport:
    """Take out of the active adapter what endangers the base's alignment, in place and without training.

    Methods, each of strength ``ρ`` in ``[0, 1]``:

    - ``fisher``: ``B' = B − ρ U C (UᵀB)``, that is ``ΔW' = (I − ρP_A)ΔW``, with the subspace's ``U``.
    - ``random``: the same with random ``U`` of the same ranks: the control.
    - ``scale``: ``B' = (1 − ρ) B``.
    - ``safe_lora``: :class:`~loralign.guard.peers.SafeLoraRepairer`; needs ``unaligned``.
    - ``intruder``: :class:`~loralign.guard.repair_intruders.IntruderRepairer`, PEFT's own; rewrites ``A`` too.

    The rank, the scaling and the number of parameters stay, so the result is saved and loaded like any other adapter;
    what an adapter holds besides its factors (biases, modules saved in full) stays as it is. Arithmetic is float32 at
    least, whatever the factors' dtype. When an error is raised, the model is as it was.

    Args:
        model: a PEFT model whose active adapter is plain LoRA.
        subspace: the alignment subspace. The last three methods use it for the report alone and also take ``None``.
        method: one of the above.
        strength: ``ρ``, or one for each layer by its canonical name, where layers that are not named stay as they are;
            1 by default (0.25 for ``intruder``, PEFT's own default).
        drift_budget: instead of a strength: the drift that may remain, in the unit of ``measure``. The least strength
            within it is found by bisection (:func:`~loralign.guard.repair_search.least_strength`); none is applied to
            an adapter that is within it already, and all of it where that is not enough, which the report says.
        measure: gives the drift of the model as it is at the time, such as
            ``lambda: probes.measure(model).kl``; needed for a budget, and otherwise called before and after.
        per_layer: for ``fisher`` and ``random``: the strength is ``κ``, from which every layer's own ``ρ`` follows by
            its Fisher energy (:func:`~loralign.guard.repair_methods.fisher_strengths`).
        by_rank: for ``fisher`` and ``random``: the strength is the share of every layer's directions that are taken out
            whole, those of the largest eigenvalues first, in place of a share of all of them: a budget is then met with
            the fewest directions.
        projection: ``"hard"`` or ``"soft"``, for ``fisher`` and ``random``.
        partial: allow a subspace that covers only some of the layers; the others stay as they are.
        unaligned: the base model before its alignment, for ``safe_lora``.
        options: of the peers.
        tolerance: of the strength that is searched for.
        max_measurements: calls of ``measure`` in the search, at most.
        seed: of the random control.

    Raises:
        ConfigError: an unknown method or projection; a strength outside ``[0, 1]`` or for an unknown layer; a budget
            that is not positive and finite; arguments that exclude or lack each other.
        AdapterError: no LoRA layers, of the wrong kind, or not covered by the subspace.
        StateError: the subspace belongs to another model.
        ModelError: an unaligned base that does not fit.
        NonFiniteError: ``measure`` gave an infinite drift or none.
    """
    _check_choice(method, METHODS, "method")
    _check_choice(projection, PROJECTIONS, "projection")
    _check_goal(strength, drift_budget, measure, tolerance, max_measurements)
    layers = lora_layers(model)
    if subspace is not None:
        subspace.check(model)
    covering = [None] * len(layers) if subspace is None else subspace.match(layers, partial=partial)
    if per_layer and isinstance(strength, Mapping):
        raise ConfigError("strengths by name leave nothing to work out per layer", fix="give one strength")
    repairer: Repairer
    if method in ("fisher", "random"):
        if subspace is None:
            raise ConfigError(f"method {method!r} needs a subspace", fix="estimate one with loralign fisher")
        used = covering if method == "fisher" else subspace.random_like(seed).match(layers, partial=partial)
        _check_by_rank(by_rank, per_layer, projection)
        repairer = RankRepairer(layers, used) if by_rank else ProjectionRepairer(layers, used, projection, per_layer)
    elif by_rank:
        raise ConfigError(f"method {method!r} has no directions", fix="use method 'fisher' or 'random'")
    elif per_layer:
        raise ConfigError(f"method {method!r} has no strengths per layer", fix="use method 'fisher' or 'random'")
    else:
        repairer = _peer(method, model, layers, unaligned, options or PeerOptions())
    goal = repairer.default_strength if strength is None else strength
    chosen = _strengths_by_name(layers, repairer, goal, method) if isinstance(goal, Mapping) else float(goal)
    work = RepairWork(layers, repairer, measure)
    shares = _shares(layers, covering)
    try:
        if drift_budget is None:
            before, after, met, trials = *work.measured(chosen), None, list[Trial]()
        else:
            search = least_strength(work.drift_at, drift_budget, tolerance=tolerance, max_measurements=max_measurements)
            work.leave_at(search.chosen.strength)
            chosen, met, trials = search.chosen.strength, search.met, search.trials
            before, after = trials[0].drift, search.chosen.drift
        records = work.records(shares, _shares(layers, covering))
    except BaseException:
        work.restore()
        raise
    return RepairReport(
        method=method,
        projection=projection,
        per_layer=per_layer,
        by_rank=by_rank,
        strength=chosen if isinstance(chosen, float) else None,
        drift_budget=drift_budget,
        met=met,
        drift_before=before,
        drift_after=after,
        measurements=work.measurements,
        layers=records,
        trials=trials,
        seed=seed,
    )


def _peer(
    method: str, model: nn.Module, layers: Sequence[LoraFactors], unaligned: nn.Module | None, options: PeerOptions
) -> Repairer:
    if method == "scale":
        return ScaleRepairer(layers)
    if method == "intruder":
        return IntruderRepairer(model, layers, options)
    if unaligned is None:
        raise ConfigError("method 'safe_lora' needs the base model before its alignment", fix="pass unaligned=")
    return SafeLoraRepairer(layers, unaligned, options)


def _strengths_by_name(
    layers: Sequence[LoraFactors], repairer: Repairer, wanted: Mapping[str, float], method: str
) -> list[float]:
    """Strengths in the layers' order, zero for those that are not named."""
    if not repairer.by_layer:
        raise ConfigError(f"method {method!r} has one strength for all layers", fix="give one number")
    given = {canonical_name(name): float(value) for name, value in wanted.items()}
    names = [canonical_name(layer.name) for layer in layers]
    # A method gives zero to what it cannot change, whatever the strength.
    able = {name for name, strength in zip(names, repairer.strengths(1.0), strict=True) if strength > 0}
    for name in given:
        if name not in able:
            near = difflib.get_close_matches(name, able, n=1)
            problem = "cannot be repaired by this method" if name in names else "is no LoRA layer of the model"
            raise ConfigError(
                f"strength for {name!r}, which {problem}", fix=f"did you mean {near[0]!r}?" if near else "leave it out"
            )
    return [given.get(name, 0.0) for name in names]


def _shares(layers: Sequence[LoraFactors], covering: Sequence[LayerSubspace | None]) -> list[float | None]:
    """Share of every covered layer's ``‖ΔW‖²`` in the alignment subspace."""
    shares = update_shares(layers, covering).tolist()
    return [None if subspace is None else share for share, subspace in zip(shares, covering, strict=True)]


def _check_choice(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise ConfigError(f"{what} {value!r} is unknown", fix=f"use one of {', '.join(known)}")


def _check_by_rank(by_rank: bool, per_layer: bool, projection: Projection) -> None:
    if by_rank and (per_layer or projection != "hard"):
        raise ConfigError(
            "taking directions out whole leaves no strengths per layer and no soft projection",
            place="by_rank",
            fix="choose one of them",
        )


def _check_goal(
    strength: float | Mapping[str, float] | None,
    drift_budget: float | None,
    measure: Callable[[], float] | None,
    tolerance: float,
    max_measurements: int,
) -> None:
    if drift_budget is not None:
        check_budget(drift_budget, tolerance, max_measurements)
        if strength is not None:
            raise ConfigError("both a strength and a drift budget are given", fix="give one of them")
        if measure is None:
            raise ConfigError("a drift budget needs something that measures the drift", fix="pass measure=")
    values = strength.values() if isinstance(strength, Mapping) else [] if strength is None else [strength]
    for value in values:
        if not 0 <= value <= 1:
            raise ConfigError(f"strength {value} is not between 0 and 1", fix="give 1 for the whole repair")
