"""The curvature ``H`` of the task's loss, per layer, in a form whose size is that of the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurvatureFactor:
    """A positive semi-definite ``S = diag(d) + V Vᵀ`` of size ``(k, k)``.

    Attributes:
        diagonal: ``d (k,)``, not negative.
        columns: ``V (k, w)``; ``w`` may be 0.
    """

    diagonal: Tensor
    columns: Tensor

    @property
    def size(self) -> int:
        """``k``."""
        return len(self.diagonal)

    def only_diagonal(self) -> CurvatureFactor:
        """The diagonal of ``S``, nothing else."""
        return CurvatureFactor(self.diagonal + self.columns.square().sum(dim=1), self.columns[:, :0])

    def dense(self) -> Tensor:
        """``S (k, k)``, for inspection."""
        return torch.diag(self.diagonal) + self.columns @ self.columns.mT


@dataclass(frozen=True)
class TaskCurvature:
    """``H = S_out ⊗ S_in`` of one layer ``W (m, n)``: ``‖H^½ΔW‖² = tr(ΔWᵀ S_out ΔW S_in)``.

    Attributes:
        output: ``S_out (m, m)``.
        input: ``S_in (n, n)``, or ``None`` for the identity.
    """

    output: CurvatureFactor
    input: CurvatureFactor | None = None
