"""Objective weights as pure functions of gradient statistics and target weights (docs/concepts.md, reweighting).

Every weighting returns ``w ≥ 0`` with ``Σw = Σλ``. An objective without a usable gradient keeps ``w_i = λ_i`` and the
others share the rest of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import nnls
from torch import Tensor

from loralign.capture import GradientStatistics
from loralign.errors import ConfigError


class Weighting(Protocol):
    """A function from statistics and target weights to the weights that multiply the objectives' gradients."""

    def __call__(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """Return ``w``: ``(K,)`` float64 for the model, or ``(L, K)`` for weights per layer.

        Args:
            statistics: of the unweighted gradients, normalised to each objective's own mean loss.
            target: ``λ (K,)``, positive.
        """
        ...


@dataclass(frozen=True)
class UniformWeighting:
    """``w = λ``: what a plain sum of losses does."""

    def __call__(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """See :class:`Weighting`."""
        return target.double().clone()


@dataclass(frozen=True)
class NormWeighting:
    """GA-LoRA-Norm: ``w_i ∝ λ_i / √E_ii``, so that every objective's gradient has one size on LoRA's parameters."""

    def __call__(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """See :class:`Weighting`."""
        return share_out(target / statistics.norms("euclidean"), target, statistics.present())


@dataclass(frozen=True)
class GeoWeighting:
    """GA-LoRA-Geo: ``w_i ∝ λ_i / max(γ_i, floor)^p``, the inverse of what the projection on LoRA's subspace takes.

    Args:
        power: ``p``.
        floor: least attenuation that is believed; an objective that LoRA cannot reach must not blow up.
        per: ``"model"`` → ``(K,)``; ``"layer"`` → ``(L, K)``, from each layer's own attenuation.
    """

    power: float = 1.0
    floor: float = 0.05
    per: str = "model"

    def __post_init__(self) -> None:
        if self.per not in ("model", "layer"):
            raise ConfigError(f"per {self.per!r} is unknown", fix="use 'model' or 'layer'")
        if not 0 < self.floor <= 1 or self.power < 0:
            raise ConfigError(f"floor {self.floor} must lie in (0, 1] and power {self.power} must not be negative")

    def __call__(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """See :class:`Weighting`."""
        attenuation = statistics.attenuation(per=self.per)
        raw = target / attenuation.clamp_min(self.floor) ** self.power
        return share_out(raw, target, statistics.present() & raw.isfinite())


@dataclass(frozen=True)
class MatchWeighting:
    """Weights whose accessible update gives every objective the first-order progress of the full-space mixture.

    A step along ``−P Σ w_j G_j`` lowers objective ``i`` at the rate ``(A w)_i``; one along ``−Σ λ_j G_j`` at the rate
    ``(F λ)_i``. The weights solve ``min ‖D⁻¹(A w − F λ)‖`` over ``w ≥ 0`` with ``D = diag(F)``, so that relative errors
    of loud and quiet objectives count alike; then they are brought to ``Σw = Σλ``, which keeps the direction. Without
    cross terms this is ``w_i ∝ λ_i/γ_i²``, GeoWeighting with ``p = 2``. Ours: docs/concepts.md, reweighting.
    """

    def __call__(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """See :class:`Weighting`."""
        usable = statistics.present()
        if not usable.any():
            return target.double().clone()
        accessible = statistics.accessible[usable][:, usable]
        full = statistics.full[usable][:, usable]
        scale = full.diagonal()
        progress = (full @ target.double()[usable]) / scale
        solution, _ = nnls((accessible / scale[:, None]).numpy(), progress.numpy())
        raw = target.double().clone()
        raw[usable] = torch.from_numpy(solution)
        return share_out(raw, target, usable)


def share_out(raw: Tensor, target: Tensor, usable: Tensor) -> Tensor:
    """Scale ``raw`` so that the usable objectives share ``Σλ`` of theirs; the others get ``λ_i``.

    Args:
        raw: ``(K,)`` or ``(L, K)``.
        target: ``λ (K,)``.
        usable: bool, broadcastable to ``raw``.
    """
    goal = target.double().expand_as(raw)
    usable = usable.expand_as(raw)
    kept = torch.where(usable, raw.double(), torch.zeros_like(goal))
    total = kept.sum(dim=-1, keepdim=True)
    budget = torch.where(usable, goal, torch.zeros_like(goal)).sum(dim=-1, keepdim=True)
    scaled = kept * budget / total
    return torch.where(usable & (total > 0), scaled, goal)
