"""One layer's sums over samples from which its task curvature is made."""

from __future__ import annotations

import torch
from torch import Tensor

from loralign.guard.accumulator import TokenGrams
from loralign.guard.nystrom import leading_eigenvectors
from loralign.guard.task_curvature import CurvatureFactor


class SideSums:
    """Diagonal and sketch of ``E_s[G_s G_sᵀ] (k, k)``, or of ``E_s[G_sᵀG_s]``, one side of the layer.

    Args:
        size: ``k``.
        test: ``Θ (k, w)``, or ``None`` for the diagonal alone.
        device: of the sums.

    Attributes:
        diagonal: ``(k,)`` float64.
        sketch: ``Σ_s G_s G_sᵀ Θ (k, w)`` in the dtype of ``Θ``, or ``None``.
    """

    def __init__(self, size: int, test: Tensor | None, device: torch.device) -> None:
        self._test = test
        self.diagonal = torch.zeros(size, dtype=torch.float64, device=device)
        self.sketch = None if test is None else torch.zeros_like(test)

    def add(self, own: Tensor, gram: Tensor) -> None:
        """Add samples ``G_s = own_sᵀ other_s``.

        Args:
            own: ``(rows, tokens, k)``, this side's gradients or inputs.
            gram: ``other_s other_sᵀ (rows, tokens, tokens)`` of the other side.
        """
        weighted = gram @ own
        self.diagonal += (weighted * own).sum(dim=(0, 1), dtype=torch.float64)
        if self.sketch is not None and self._test is not None:
            self.sketch.addmm_(weighted.flatten(0, 1).mT, (own @ self._test).flatten(0, 1))

    def buffers(self) -> list[Tensor]:
        """All sums, to be added over processes."""
        return [self.diagonal] if self.sketch is None else [self.diagonal, self.sketch]

    def factor(self, scale: float, rank: int) -> CurvatureFactor:
        """The sum divided by ``scale``: its leading eigenpairs, and its exact diagonal.

        Args:
            scale: positive.
            rank: the most eigenpairs; what they leave of the diagonal is kept as such.
        """
        columns = torch.zeros(len(self.diagonal), 0, dtype=torch.float64, device=self.diagonal.device)
        if self.sketch is not None:
            vectors, values = leading_eigenvectors(self.sketch, self._test, rank)
            columns = vectors * values.sqrt()
        rest = (self.diagonal - columns.square().sum(dim=1)).clamp_min(0)
        return CurvatureFactor((rest / scale).float().cpu(), (columns / scale**0.5).float().cpu())


class CurvatureSums:
    """Both sides of one layer's Fisher matrix, from per-sample inputs and output gradients.

    The partial traces of the Fisher matrix ``E_s[vec(G_s) vec(G_s)ᵀ]`` are ``E_s[G_s G_sᵀ]`` and ``E_s[G_sᵀG_s]``.
    Their diagonals are exact here; beyond the diagonal the leading eigenpairs come from a sketch (see
    :func:`~loralign.guard.nystrom.leading_eigenvectors`). ``G_s`` is never formed.

    Args:
        shape: ``(m, n)``.
        output_test: ``Θ (m, w)`` of the output side, or ``None`` for its diagonal alone.
        input_test: ``Θ (n, w)`` of the input side, or ``None`` to leave that side out.
        device: of the sums.
    """

    def __init__(
        self, shape: tuple[int, int], output_test: Tensor | None, input_test: Tensor | None, *, device: torch.device
    ) -> None:
        self.output = SideSums(shape[0], output_test, device)
        self.input = None if input_test is None else SideSums(shape[1], input_test, device)

    def add(self, x: Tensor, g: Tensor, grams: TokenGrams) -> None:
        """Add the samples of one backward pass.

        Args:
            x: ``(rows, tokens, n)``.
            g: ``(rows, tokens, m)``.
            grams: shared between the layers of the pass.
        """
        self.output.add(g, grams.of(x))
        if self.input is not None:
            self.input.add(x, g @ g.mT)

    def buffers(self) -> list[Tensor]:
        """All sums, to be added over processes."""
        return [*self.output.buffers(), *([] if self.input is None else self.input.buffers())]
