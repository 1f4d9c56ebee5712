"""What LoRA reaches of the gradients once the input directions that all objectives share are taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loralign.capture import GradientCapture, GradientStatistics
from loralign.errors import ConfigError
from loralign.geometry.refactor import leading_rows

# A layer's one massive direction, which alone holds more than half of every gradient, and some behind it; half of the
# default rank, so that an adapter whose rows hold them all has as many for what sets objectives apart; and a quarter of
# the default sketch, whose other columns are the oversampling that finding directions needs.
SHARED_DIRECTIONS = 8
# What float32 leaves of a gradient that vanishes, relative to the gradient that it was.
_RESOLUTION = 1e-5


def shared_directions(gradients: Tensor, count: int = SHARED_DIRECTIONS) -> Tensor:
    """The input directions of one layer that its objectives share most, ``V (n, count)``.

    The leading right singular vectors of the balanced stack ``[S_1/‖S_1‖; …; S_K/‖S_K‖]`` (docs/concepts.md, shared
    directions), which of all ``count`` directions hold the largest mean share of the objectives' energy,
    ``(1/K) Σ_i ‖S_i V‖² / ‖S_i‖²``. Every objective counts alike, however loud; one that is zero does not count.

    Args:
        gradients: ``S_i (K, c, n)`` with ``S_iᵀ S_i ≈ G_iᵀ G_i``: :meth:`GradientCapture.stacks`, or the ``G_i``.
        count: ``p``, less than ``n``.

    Returns:
        float64, orthonormal columns; zero columns where the gradients have no further direction, and all of them zero
        where a gradient is not finite.

    Raises:
        ConfigError: a negative count, or one that leaves no input.
    """
    inputs = gradients.shape[-1]
    if not 0 <= count < inputs:
        raise ConfigError(
            f"{count} shared directions cannot be taken out of {inputs} inputs", fix=f"use 0 to {inputs - 1}"
        )
    wide = gradients.detach().double()
    norms = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    found = wide.new_zeros(inputs, count)
    if count == 0 or not bool(norms.isfinite().all()):
        return found
    rows = (wide / torch.where(norms > 0, norms, torch.ones_like(norms))).flatten(0, 1)
    if rows.shape[0] > inputs:
        # The triangle has the same right singular vectors, and exact gradients have many rows.
        rows = torch.linalg.qr(rows, mode="r").R
    values, directions = leading_rows(rows, count)
    usable = int((values > 1e-6 * torch.linalg.matrix_norm(rows).cpu()).sum())
    found[:, :usable] = directions[:, :usable]
    return found


@dataclass(frozen=True)
class WithoutShared:
    """Gradients ``G_i`` and what remains of them, ``G_i' = G_i (I − V Vᵀ)``, with ``V (n, p)`` of every layer.

    Attributes:
        directions: ``p``.
        whole: statistics of ``G_i``.
        remaining: statistics of ``G_i'``, zero where only rounding remains; anything that reads statistics, such as
            cosines and the trade-off distortion, may be read off them too.
    """

    directions: int
    whole: GradientStatistics
    remaining: GradientStatistics

    def attenuation(self, per: str = "model") -> Tensor:
        """``γ_i' = ‖P(G_i')‖ / ‖G_i'‖`` in ``[0, 1]``: the part of what remains that LoRA can follow.

        ``P`` is the projector on the whole tangent space ``{B X + Y A}``, as for the ordinary ``γ`` (docs/concepts.md,
        shared directions, this project's own). ``row(A)`` is not restricted to the complement of ``V``, because taking
        directions out of the question does not take them out of the adapter: its steps are what they were, and one that
        moves along ``V`` as well is that much further from ``G_i'``. So ``γ_i'`` is still the cosine between a gradient
        and the best step for it, is the ordinary ``γ_i`` at ``p = 0``, stays ``√(r/n)`` in a fresh adapter for every
        ``p``, and varies continuously with ``V``. Only steps with rows in ``row(A) ∩ V^⊥`` would read zero in any fresh
        adapter of rank up to ``p``; steps with all of ``A (I − V Vᵀ)`` would count a row that leaves ``V`` by rounding
        as a whole row. The two bound it from below and from above.

        Args:
            per: ``"model"`` → ``(K,)``, ``"layer"`` → ``(L, K)``.

        Returns:
            float64; 0 where less than 1e-5 of a gradient's length remains, so that there is nothing to follow; NaN
            where an objective has no gradient at all.
        """
        found = self.remaining.attenuation(per)
        return torch.where(self.share(per) == 1, torch.zeros_like(found), found)

    def share(self, per: str = "model") -> Tensor:
        """``‖G_i V‖² / ‖G_i‖²`` in ``[0, 1]``, the energy in the shared directions: ``(K,)``, per layer ``(L, K)``."""
        if per == "model":
            return (1 - _energies(self.remaining.full) / _energies(self.whole.full)).clamp(0, 1)
        return (1 - _energies(self.remaining.layer_full) / _energies(self.whole.layer_full)).clamp(0, 1)


def without_shared(
    capture: GradientCapture, directions: Sequence[Tensor], normalise: str | None = "mean"
) -> WithoutShared:
    """What LoRA reaches of the captured gradients with ``directions`` taken out on the input side.

    But for exact captures, the gradients must have been measured along the directions, which therefore come from a
    measurement before: with ``V`` known beforehand ``P(G_i')`` is exact, and the sketch, which ``V`` does not depend
    on, estimates the rest of ``‖G_i'‖`` without bias. Directions found in the very sketch that measures would fit its
    noise and leave too little.

    Example:
        >>> measure(capture)                                                         # doctest: +SKIP
        >>> directions = [shared_directions(stack, 8) for stack in capture.stacks()] # doctest: +SKIP
        >>> capture.reset(directions)                                                # doctest: +SKIP
        >>> measure(capture)                                                         # doctest: +SKIP
        >>> without_shared(capture, directions).attenuation()                        # doctest: +SKIP

    Args:
        capture: with gradients in it.
        directions: ``V (n, p)`` per layer, as :func:`shared_directions` gives them.
        normalise: as in :meth:`GradientCapture.statistics`.

    Raises:
        StateError: nothing was captured, or not along these directions.
    """
    whole = capture.statistics(normalise)
    remaining = _without_rounding(whole, capture.statistics(normalise, without=directions))
    return WithoutShared(max((one.shape[1] for one in directions), default=0), whole, remaining)


def check_shared_count(count: int, capture: GradientCapture) -> None:
    """Refuse more directions than a capture can find and leave, before anything is measured.

    Raises:
        ConfigError: negative, as many as a layer has inputs, or more than the sketch has columns.
    """
    smallest = min(capture.layers, key=lambda layer: layer.A.shape[1])
    inputs = smallest.A.shape[1]
    most = inputs - 1 if capture.exact else min(inputs - 1, capture.sketch_size)
    if not 0 <= count <= most:
        why = f"{smallest.name} has {inputs} inputs"
        why = why if capture.exact else f"{why} and the sketch {capture.sketch_size} columns"
        raise ConfigError(f"{count} shared directions cannot be taken out: {why}", fix=f"use 0 to {most}")


def _without_rounding(whole: GradientStatistics, remaining: GradientStatistics) -> GradientStatistics:
    """Zero where what remains of a layer's gradient is of the size of rounding, whose direction means nothing."""
    nothing = _energies(remaining.layer_full) <= _RESOLUTION**2 * _energies(whole.layer_full)
    none = nothing[:, :, None] | nothing[:, None, :]
    return replace(
        remaining,
        layer_full=remaining.layer_full.masked_fill(none, 0.0),
        layer_accessible=remaining.layer_accessible.masked_fill(none, 0.0),
        layer_euclidean=remaining.layer_euclidean.masked_fill(none, 0.0),
    )


def _energies(gramians: Tensor) -> Tensor:
    return gramians.diagonal(dim1=-2, dim2=-1)
