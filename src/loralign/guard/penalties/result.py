"""What one evaluation of the penalty gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PenaltyResult:
    """Values of all terms over all layers, not weighted, and what they say of the update.

    Attributes:
        alignment: ``‖F^½ΔW_A‖²``, with normalised eigenvalues.
        stability: ``‖H^½ΔW_T‖²``.
        overlap: ``E_RM``; not a number where its weight is 0, since it was not computed.
        geodesic: ``E_geo``, the mean over the layers that have a subspace; the other terms are sums.
        total: the weighted sum, what is added to the loss.
        gradients: with respect to ``(A, B)`` of every layer, of the total, in float32 (float64 for factors in float64);
            ``None`` where they were not asked, or were added to the parameters'.
        layer_energy: ``‖ΔW_A‖²`` and ``‖ΔW_T‖²`` of every layer under the hard projector, whatever the options:
            ``(layers, 2)`` float64 on the CPU, which adds up to ``‖ΔW‖²``.
        layer_cosine: ``cos∠(ΔW_A, ΔW_T)`` of every layer under the projection of the options, ``(layers,)`` float64 on
            the CPU; 0 where a part vanishes.
    """

    alignment: float
    stability: float
    overlap: float
    geodesic: float
    total: float
    gradients: list[tuple[Tensor, Tensor]] | None
    layer_energy: Tensor
    layer_cosine: Tensor

    @property
    def share(self) -> float:
        """``Σ‖ΔW_A‖²/Σ‖ΔW‖²`` under the hard projector, 0 where there is no update."""
        total = float(self.layer_energy.sum())
        return float(self.layer_energy[:, 0].sum()) / total if total > 0 else 0.0
