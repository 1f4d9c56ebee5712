"""What the directory of a guarded run says of what had to survive, whatever the run trained for."""

from __future__ import annotations

from loralign.report.guard_records import UNGUARDED, GuardedRun, Safety
from loralign.report.records import Metric
from loralign.report.runs.differences import difference
from loralign.report.runs.records import KL, OVER_REFUSAL, OWN_PROBE, REFUSAL, Category, Curve, LayerMap, Score

_ROLES = {"penalty": "guarded by penalties", "project": "guarded by projection"}

ENERGY_NOTE = "Share of each layer's Fisher energy that the directions of the alignment subspace capture."


def guard_role(run: GuardedRun) -> str:
    """Return how the run was guarded; empty where it was not or does not say."""
    return "" if run.mode in (*UNGUARDED, "unknown") else _ROLES.get(run.mode, "guarded")


def start_scores(run: GuardedRun) -> tuple[Score, ...]:
    """Return what the start scored: no drift from itself, and its refusals."""
    return (Score(KL, OWN_PROBE, Metric(0.0)), *refusals(run.scores.safety_before if run.scores else None, None))


def kept_scores(run: GuardedRun) -> tuple[Score, ...]:
    """Return the drift from the start on the run's own probe, and refusals with their change."""
    if run.scores is None:
        return ()
    drift = run.scores.drift
    found = () if drift is None else (Score(KL, OWN_PROBE, drift, drift, paired=True),)
    return found + refusals(run.scores.safety_after, run.scores.safety_before)


def refusals(safety: Safety | None, before: Safety | None) -> tuple[Score, ...]:
    """Return the shares of unsafe and of safe prompts that were refused, with their change from ``before``."""
    if safety is None:
        return ()
    pairs = (
        (REFUSAL, safety.refusal, before.refusal if before else None),
        (OVER_REFUSAL, safety.over_refusal, before.over_refusal if before else None),
    )
    return tuple(
        Score(quantity, OWN_PROBE, metric, difference(metric, earlier))
        for quantity, metric, earlier in pairs
        if metric is not None
    )


def by_category(safety: Safety | None) -> tuple[Category, ...]:
    """Return the shares refused by label and category."""
    if safety is None:
        return ()
    return tuple(
        Category(
            REFUSAL if label == "unsafe" else OVER_REFUSAL,
            OWN_PROBE,
            label,
            category,
            safety.prompts.get((label, category)),
            metric,
        )
        for (label, category), metric in safety.categories.items()
    )


def guard_curves(run: GuardedRun) -> tuple[Curve, ...]:
    """Return drift and refusals over steps, as far as they were measured."""
    drift = tuple((probe.step, probe.kl) for probe in run.probes if probe.kl is not None)
    refused = tuple((one.step, 100 * one.rate) for one in run.refusals if one.rate is not None)
    curves = (
        Curve("drift", "Drift from the start, on each run's own probe", "KL (nats per token)", "", drift),
        Curve("refusals", "Refusals of the probe's unsafe prompts", "refused (%)", "", refused),
    )
    return tuple(curve for curve in curves if curve.points)


def energy_maps(run: GuardedRun) -> tuple[LayerMap, ...]:
    """Return the map of the energy that the subspace captures, none without a subspace."""
    energies = {
        name: {"energy": values.get("energy")}
        for name, values in (run.subspace.layers if run.subspace else {}).items()
        if values.get("energy") is not None
    }
    if not energies:
        return ()
    return (LayerMap("energy", "Fisher energy captured by layer", ENERGY_NOTE, "energy", "", energies),)
