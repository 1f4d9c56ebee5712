"""TorchJD's Gramian weightings, the peers that GA-LoRA is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchjd.aggregation import Weighting as TorchJDWeighting

from loralign.capture import GradientStatistics
from loralign.geometry.weighting import share_out


@dataclass(frozen=True)
class GramianWeighting:
    """Any weighting of TorchJD that works on a Gramian (UPGrad, MGDA, CAGrad, PCGrad, AlignedMTL, …).

    The target weights enter as scaled objectives: the weighting sees the Gramian of ``λ_i G_i`` and its answer ``ω``
    becomes ``w_i = λ_i ω_i``, brought to ``Σw = Σλ``. A weighting that answers only zeros (no common descent) leaves
    ``w = λ``.

    Args:
        weighting: an instance such as ``torchjd.aggregation.UPGradWeighting()``.
        space: which Gramian it sees: ``"euclidean"`` (over LoRA's parameters, what these methods would see by
            themselves), ``"accessible"`` or ``"full"``.
    """

    weighting: TorchJDWeighting
    space: str = "euclidean"

    def __call__(self, statistics: GradientStatistics, target: Tensor) -> Tensor:
        """See :class:`~loralign.geometry.weighting.Weighting`."""
        usable = statistics.present()
        goal = target.double()
        raw = goal.clone()
        if usable.any():
            chosen = goal[usable]
            gramian = statistics.gramian(self.space)[usable][:, usable] * chosen[:, None] * chosen[None, :]
            # Weightings are meant to be scale-free, but their solvers have absolute tolerances.
            omega = self.weighting(gramian / gramian.diagonal().mean())
            raw[usable] = chosen * torch.as_tensor(omega, dtype=torch.float64).clamp_min(0)
        return share_out(raw, target, usable)
