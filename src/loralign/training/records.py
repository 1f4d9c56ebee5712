"""The lines of ``geometry.jsonl``: measurements, refinements and steps as plain values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from loralign.capture import GradientStatistics
from loralign.capture.statistics import SPACES
from loralign.geometry import RefinementReport, WithoutShared, directional_distortion, tradeoff_distortion


def measurement_record(
    step: int,
    statistics: GradientStatistics,
    average: GradientStatistics | None,
    target: Tensor,
    weights: Tensor,
    in_force: Tensor,
    skipped: str | None,
) -> dict[str, Any]:
    """One measurement (docs/concepts.md, what is read off the Gramians).

    Args:
        step: optimiser step, from 0.
        statistics: this measurement, normalised to the objectives' own mean losses.
        average: the moving average behind the weights.
        target: ``λ (K,)``.
        weights: weights from the next step on, ``(K,)`` or ``(L, K)``.
        in_force: weights of the step that was measured, ``(L, K)``.
        skipped: why the weights were left unchanged, if they were.
    """
    names = statistics.objectives
    tradeoff = tradeoff_distortion(statistics, target)
    smooth = statistics if average is None else average
    record: dict[str, Any] = {
        "kind": "measurement",
        "step": step,
        "objectives": list(names),
        "attenuation": named(names, statistics.attenuation()),
        "attenuation_average": named(names, smooth.attenuation()),
        "layer_attenuation": {
            layer: named(names, row)
            for layer, row in zip(statistics.layer_names, statistics.attenuation(per="layer"), strict=True)
        },
        "weights": weight_values(names, statistics.layer_names, weights),
        "weights_in_force": named(names, in_force.mean(dim=0)),
        "directional_distortion": plain(directional_distortion(statistics, target)),
        "step_distortion": None,
        "tradeoff": {
            "total_variation": plain(tradeoff.total_variation),
            "spread": plain(tradeoff.spread),
            "intended": named(names, tradeoff.intended),
            "realised": named(names, tradeoff.realised),
        },
        "cosine": {space: cosine_values(statistics, space) for space in SPACES},
        "gradient_norm": {space: named(names, statistics.norms(space)) for space in SPACES},
        "samples": named(names, statistics.samples),
        "tokens": named(names, statistics.tokens),
    }
    return record if skipped is None else record | {"skipped": skipped}


def refinement_record(step: int, report: RefinementReport) -> dict[str, Any]:
    """One refinement; ``γ`` just after it is that of the next measurement unless the report carries it."""
    return {"kind": "refinement", "step": step, **report.to_json()}


def without_shared_record(found: WithoutShared) -> dict[str, Any]:
    """What remains without the input directions that all objectives share (docs/concepts.md, shared directions)."""
    names, layers = found.whole.objectives, found.whole.layer_names

    def by_layer(rows: Tensor) -> dict[str, Any]:
        return {layer: named(names, row) for layer, row in zip(layers, rows, strict=True)}

    return {
        "directions": found.directions,
        "shared_energy": named(names, found.share()),
        "layer_shared_energy": by_layer(found.share(per="layer")),
        "attenuation": named(names, found.attenuation()),
        "layer_attenuation": by_layer(found.attenuation(per="layer")),
        "cosine": {space: cosine_values(found.remaining, space) for space in SPACES},
    }


def cosine_values(statistics: GradientStatistics, space: str) -> list[list[float | None]]:
    """The ``K × K`` cosines in a space, row by row."""
    return [[plain(value) for value in row] for row in statistics.cosine(space).tolist()]


def weight_values(names: tuple[str, ...], layers: tuple[str, ...], weights: Tensor) -> dict[str, Any]:
    """``{objective: w}``, or per layer with the mean beside it."""
    if weights.ndim == 1:
        return dict(named(names, weights))
    per_layer = {layer: named(names, row) for layer, row in zip(layers, weights, strict=True)}
    return {"per_layer": per_layer, "mean": named(names, weights.mean(dim=0))}


def named(names: tuple[str, ...], values: Tensor) -> dict[str, float | None]:
    """``{name: value}`` with numbers that JSON can hold."""
    return {name: plain(value) for name, value in zip(names, torch.as_tensor(values).tolist(), strict=True)}


def plain(value: float) -> float | None:
    """A finite number, or ``None``: JSON has no word for the others."""
    return value if math.isfinite(value) else None
