"""How far LoRA bends an intended update and unbalances the objectives in it (docs/concepts.md, what is read off)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.capture import GradientStatistics


def directional_distortion(statistics: GradientStatistics, weights: Tensor) -> float:
    """``1 − √(λᵀAλ / λᵀFλ) = 1 − cos(G_λ, P G_λ)`` of the mixture ``G_λ = Σ λ_i G_i``.

    Zero when LoRA can follow the mixture's gradient wholly, one when it cannot move along it at all; NaN without a
    gradient.

    Args:
        statistics: Gramians of the objectives' own gradients.
        weights: ``λ (K,)``.
    """
    mixture = weights.double()
    accessible = mixture @ statistics.accessible @ mixture
    full = mixture @ statistics.full @ mixture
    return float(1 - (accessible / full).clamp(0, 1).sqrt())


def step_distortion(statistics: GradientStatistics, weights: Tensor, inner: Tensor, norm: Tensor | float) -> float:
    """``1 − cos(−G_λ, s(ΔB A + B ΔA))`` for the step that an optimiser really took.

    Args:
        statistics: Gramians from which ``‖G_λ‖`` is read; the same scale of gradients as ``inner``.
        weights: ``λ (K,)``, the mixture that was intended.
        inner: ``⟨G_i, s(ΔB A + B ΔA)⟩`` per objective, ``(K,)``: see :meth:`GradientCapture.step_inner`.
        norm: ``‖s(ΔB A + B ΔA)‖`` over all layers: see :func:`loralign.geometry.tangent.step_norm`.
    """
    mixture = weights.double()
    gradient_norm = (mixture @ statistics.full @ mixture).clamp_min(0).sqrt()
    cosine = -(mixture @ inner.double()) / (gradient_norm * norm)
    return float(1 - cosine.clamp(-1, 1))


@dataclass(frozen=True)
class TradeoffDistortion:
    """How unequal attenuation shifts the influence of the objectives.

    Attributes:
        intended: ``λ_i / Σλ``, ``(K,)``.
        realised: ``λ_iγ_i / Σλ_jγ_j``, ``(K,)``.
        total_variation: ``½ Σ |intended − realised|``, in ``[0, 1]``.
        spread: ``max γ / min γ``, at least one.
    """

    intended: Tensor
    realised: Tensor
    total_variation: float
    spread: float


def tradeoff_distortion(statistics: GradientStatistics, weights: Tensor) -> TradeoffDistortion:
    """Compare the intended shares of the objectives with those that survive the projection on LoRA's tangent space.

    Objectives without a gradient are left out on both sides.

    Args:
        statistics: Gramians of the objectives' gradients.
        weights: ``λ (K,)``, not negative.
    """
    seen = statistics.present()
    attenuation = torch.where(seen, statistics.attenuation(), torch.zeros_like(statistics.samples))
    mixture = torch.where(seen, weights.double(), torch.zeros_like(statistics.samples))
    intended = mixture / mixture.sum()
    survived = mixture * attenuation
    realised = survived / survived.sum()
    visible = attenuation[seen]
    return TradeoffDistortion(
        intended=intended,
        realised=realised,
        total_variation=float((intended - realised).abs().sum() / 2),
        spread=float(visible.max() / visible.min()) if visible.numel() else float("nan"),
    )
