"""The task curvature ``H`` of layers of one shape, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.errors import ConfigError
from loralign.guard.penalties.options import CurvatureForm
from loralign.guard.task_curvature import CurvatureFactor, TaskCurvature


@dataclass(frozen=True)
class FactorStack:
    """``S = diag(d) + V Vᵀ`` of ``L`` layers.

    Attributes:
        diagonal: ``d (L, k)``.
        columns: ``V (L, k, w)``, padded with zero columns to the largest width.
    """

    diagonal: Tensor
    columns: Tensor

    @classmethod
    def of(cls, factors: Sequence[CurvatureFactor | None], size: int, dtype: torch.dtype) -> FactorStack:
        """Stack factors ``(size, size)``; ``None`` is the identity."""
        width = max((factor.columns.shape[1] for factor in factors if factor is not None), default=0)
        diagonal = torch.ones(len(factors), size, dtype=dtype)
        columns = torch.zeros(len(factors), size, width, dtype=dtype)
        for row, factor in enumerate(factors):
            if factor is not None:
                diagonal[row] = factor.diagonal
                columns[row, :, : factor.columns.shape[1]] = factor.columns
        return cls(diagonal, columns)

    def to(self, device: torch.device, dtype: torch.dtype) -> FactorStack:
        """The same elsewhere."""
        return FactorStack(self.diagonal.to(device, dtype), self.columns.to(device, dtype))

    def apply(self, matrix: Tensor) -> Tensor:
        """``S`` times ``matrix (L, k, c)``."""
        result = self.diagonal[..., None] * matrix
        return result.baddbmm_(self.columns, self.columns.mT @ matrix) if self.columns.shape[2] else result


@dataclass(frozen=True)
class CurvatureStack:
    """``H = S_out ⊗ S_in`` of ``L`` layers.

    Attributes:
        output: ``S_out``, of size ``m``.
        input: ``S_in``, of size ``n``, or ``None`` for the identity.
    """

    output: FactorStack
    input: FactorStack | None

    @classmethod
    def of(
        cls,
        curvature: Sequence[TaskCurvature | None],
        shape: tuple[int, int],
        form: CurvatureForm,
        dtype: torch.dtype,
    ) -> CurvatureStack | None:
        """Stack the curvature of layers of one shape in the form that is asked; ``None`` for the identity."""
        if form == "identity":
            return None
        height, width = shape
        outputs = [None if one is None else one.output for one in curvature]
        if form == "diagonal":
            outputs = [None if one is None else one.only_diagonal() for one in outputs]
            return cls(FactorStack.of(outputs, height, dtype), None)
        inputs = [None if one is None else one.input for one in curvature]
        if any(one is not None and one.input is None for one in curvature):
            raise ConfigError(
                "the task curvature has no input side",
                place="task_curvature",
                fix="estimate it with kind='kronecker', or use task_curvature='diagonal'",
            )
        return cls(FactorStack.of(outputs, height, dtype), FactorStack.of(inputs, width, dtype))

    def to(self, device: torch.device, dtype: torch.dtype) -> CurvatureStack:
        """The same elsewhere."""
        return CurvatureStack(
            self.output.to(device, dtype), None if self.input is None else self.input.to(device, dtype)
        )
