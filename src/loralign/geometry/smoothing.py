"""Smoothing and clipping of objective weights over training steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from loralign.capture import GradientStatistics
from loralign.errors import ConfigError, StateError
from loralign.geometry.weighting import Weighting

_STATE_VERSION = 1
_NEARLY_ZERO = 1e-9


def clip_weights(weights: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The point of the box ``[low, high]`` of the form ``clip(c·w, low, high)`` that keeps the sum of ``w``.

    A plain clip would change ``Σw``, and rescaling after it would leave the box. ``c`` is found by a bracketed root
    search on the monotone ``c ↦ Σ clip(c·w, low, high) − Σw``.

    Zeros, as a weighting at a vertex of the simplex gives them, count as nearly zero: no factor would lift them out of
    ``low`` where the others alone cannot make up the sum.

    Args:
        weights: ``(K,)``, not negative, not all zero.
        low: ``(K,)``.
        high: ``(K,)``; ``Σ low ≤ Σ w ≤ Σ high``.
    """
    goal = float(weights.sum())
    weights = weights.clamp_min(_NEARLY_ZERO * goal)

    def excess(log_scale: float) -> float:
        return float((weights * math.exp(log_scale)).clamp(low, high).sum()) - goal

    if abs(excess(0.0)) <= 1e-12 * goal:
        return weights.clamp(low, high)
    log_scale = brentq(excess, -40.0, 40.0, xtol=1e-13)
    return (weights * math.exp(log_scale)).clamp(low, high)


@dataclass
class SmoothedWeighting:
    """Wraps any weighting: moving averages of the Gramians, then the weights, then bounds (docs/concepts.md).

    Numerators and denominators are averaged apart and divided after, which is a ratio of averages and no average of
    ratios. An objective absent from a measurement keeps its averages. A measurement without any usable gradient, or
    with one that is not finite, leaves the weights unchanged and says so.

    Args:
        weighting: the function to wrap.
        decay: weight of the past in the moving average of the model-wide Gramians, in ``[0, 1)``; 0 turns it off.
        layer_decay: the same for weights per layer, which see noisier statistics.
        bounds: ``w/λ`` stays in this interval, one lying inside it.
        max_change: largest factor by which a weight may change between two measurements.
    """

    weighting: Weighting
    decay: float = 0.9
    layer_decay: float = 0.97
    bounds: tuple[float, float] = (0.25, 4.0)
    max_change: float = 1.5
    skipped: str | None = field(default=None, init=False)
    _average: GradientStatistics | None = field(default=None, init=False)
    _weights: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.layer_decay < 1):
            raise ConfigError(f"decay {self.decay} and layer_decay {self.layer_decay} must lie in [0, 1)")
        if not 0 < self.bounds[0] <= 1 <= self.bounds[1]:
            raise ConfigError(f"bounds {self.bounds} must be positive and hold one between them")
        if self.max_change <= 1:
            raise ConfigError(f"max_change {self.max_change} must be above one")

    @property
    def average(self) -> GradientStatistics | None:
        """The averaged statistics, or ``None`` before the first measurement."""
        return self._average

    def update(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """Take in a measurement and return the weights now in force, ``(K,)`` or ``(L, K)``.

        Args:
            statistics: one measurement, normalised to the objectives' own mean losses.
            target: ``λ (K,)``.
        """
        goal = target.double()
        self.skipped = _unusable(statistics)
        if self.skipped is not None:
            return goal if self._weights is None else self._weights
        self._average = self._blend(statistics)
        raw = self.weighting(self._average, goal)
        if not raw.isfinite().all():
            self.skipped = "the weighting gave a value that is not finite"
            return goal if self._weights is None else self._weights
        previous = goal.expand_as(raw) if self._weights is None else self._weights
        low = torch.maximum(goal * self.bounds[0], previous / self.max_change)
        high = torch.minimum(goal * self.bounds[1], previous * self.max_change)
        rows = zip(raw.view(-1, len(goal)), low.view(-1, len(goal)), high.view(-1, len(goal)), strict=True)
        self._weights = torch.stack([clip_weights(*row) for row in rows]).view(raw.shape)
        return self._weights

    def state_dict(self) -> dict[str, Any]:
        """A versioned mapping of plain values, ready for JSON."""
        return {
            "version": _STATE_VERSION,
            "average": None if self._average is None else self._average.state_dict(),
            "weights": None if self._weights is None else self._weights.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises:
            StateError: another version.
        """
        if state.get("version") != _STATE_VERSION:
            raise StateError(f"weighting state of version {state.get('version')!r} is not understood")
        average, weights = state["average"], state["weights"]
        self._average = None if average is None else GradientStatistics.from_state_dict(average)
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def _blend(self, new: GradientStatistics) -> GradientStatistics:
        old = self._average
        if old is None:
            return new
        seen_now, seen_before = new.present(), old.present()
        per_layer = getattr(self.weighting, "per", "model") == "layer"
        decay = self.layer_decay if per_layer else self.decay
        both_now = seen_now[:, None] & seen_now[None, :]
        both_before = seen_before[:, None] & seen_before[None, :]
        # A pair seen for the first time starts its average; one not seen now keeps it.
        share = torch.where(both_now, torch.where(both_before, 1 - decay, 1.0), 0.0).double()

        def blend(name: str) -> Tensor:
            past, present = getattr(old, name), getattr(new, name)
            return torch.where(share > 0, past + share * (present - past), past)

        return replace(
            new,
            layer_full=blend("layer_full"),
            layer_accessible=blend("layer_accessible"),
            layer_euclidean=blend("layer_euclidean"),
            samples=old.samples + new.samples,
            tokens=old.tokens + new.tokens,
        )


def _unusable(statistics: GradientStatistics) -> str | None:
    energies = statistics.full.diagonal()
    for objective, count, energy in zip(statistics.objectives, statistics.samples.tolist(), energies, strict=True):
        if count > 0 and not energy.isfinite():
            return f"the gradient of {objective} is not finite"
    if not statistics.present().any():
        return "no objective has a gradient"
    return None
