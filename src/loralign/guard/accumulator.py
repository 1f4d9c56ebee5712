"""Sums over samples of ``G_s G_sᵀ``, whole or multiplied by a test matrix, without forming ``G_s``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from loralign.guard.products import bfloat16_values

# Columns of G_s formed at once where a product has to go through them.
_TILE = 512


class TokenGrams:
    """Gram matrices ``x_s x_sᵀ`` of the tokens of every sample, computed once for layers that read the same input."""

    def __init__(self) -> None:
        self._x: Tensor | None = None
        self._gram: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """``x xᵀ (rows, tokens, tokens)`` of ``x (rows, tokens, n)``; the last one is kept, by identity of ``x``."""
        if self._gram is None or self._x is not x:
            self._x, self._gram = x, x @ x.mT
        return self._gram

    def clear(self) -> None:
        """Let go of the last input and its Gram matrices."""
        self._x = self._gram = None


class FisherSums:
    """One layer's ``Σ_s G_s G_sᵀ Θ`` and ``Σ_s ‖G_s‖²`` for each of two halves of the samples.

    ``G_s = g_sᵀ x_s (m, n)`` is the gradient of sample ``s`` (docs/adapting.md). With a test matrix ``Θ (m, w)``
    the first sum is a sketch ``(m, w)`` of the Fisher matrix, without one (``Θ = I``) it is the matrix itself; the
    second is its trace, exact either way. Both are linear in the samples, so they add over batches and processes.

    Neither product needs ``G_s``: where the tokens ``T`` are few, both go through the Gram matrices of the tokens,
    ``G_s G_sᵀ = g_sᵀ (x_s x_sᵀ) g_s`` and ``‖G_s‖² = ⟨x_s x_sᵀ, g_s g_sᵀ⟩``, and where they are many, through thin
    products and through ``G_s`` a few columns at a time. The cheaper way is taken, by the number of multiplications.

    Args:
        rows: ``m``.
        columns: ``n``.
        test: ``Θ (m, w)``, or ``None`` for the whole matrix.
        dtype: of the sums, float32 or float64.
        device: of the sums.
        from_bfloat16: whether the values of ``x``, ``g`` and ``Θ`` are ones that bfloat16 represents.

    Attributes:
        test: the test matrix in use.
        first_pass: false once :meth:`next_pass` was called; then traces and whole matrices are complete.
        moment: ``(2, m, w)``, one sum for each half, or ``(2, m, m)`` of which only the blocks on and above the
            diagonal are kept; :meth:`total` completes them.
        squares: ``(2,)`` float64.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        test: Tensor | None,
        *,
        dtype: torch.dtype,
        device: torch.device,
        from_bfloat16: bool = False,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.test = test
        self.first_pass = True
        self.from_bfloat16 = from_bfloat16
        width = rows if test is None else test.shape[1]
        self.moment = torch.zeros(2, rows, width, dtype=dtype, device=device)
        self.squares = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, x: Tensor, g: Tensor, split: int, grams: TokenGrams) -> None:
        """Add the samples of one backward pass.

        Args:
            x: ``(rows, tokens, n)`` inputs of the layer, of the sums' dtype.
            g: ``(rows, tokens, m)`` gradients at its output.
            split: the samples before this row belong to the first half, the others to the second.
            grams: shared between the layers of a backward pass.
        """
        if self.test is None and not self.first_pass:
            return
        gram = None
        if self._prefers_grams(x.shape[1]):
            with self._products():
                gram = grams.of(x)
        for half, part in _parts(split, len(x)):
            own = None if gram is None else gram[part]
            if self.test is None:
                self._add_whole(half, x[part], g[part], own)
            else:
                self._add_sketch(half, x[part], g[part], own, self.test)

    def total(self, half: int | None = None) -> Tensor:
        """``Σ_s G_s G_sᵀ Θ`` of one half, or of both, ``(m, w)`` or the whole symmetric ``(m, m)``."""
        found = self.moment.sum(dim=0) if half is None else self.moment[half]
        return found if self.test is not None else found.triu() + found.triu(1).mT

    def next_pass(self) -> None:
        """Begin the sketch again, with a test matrix that spans what it has found; a whole matrix is complete."""
        self.first_pass = False
        if self.test is not None:
            self.test = torch.linalg.qr(self.total()).Q.contiguous()
            self.moment.zero_()

    def buffers(self) -> list[Tensor]:
        """The sums of the pass under way, to be reduced over processes."""
        if self.first_pass:
            return [self.moment, self.squares]
        return [] if self.test is None else [self.moment]

    def tensors(self) -> dict[str, Tensor]:
        """All that a later call needs to go on, by name."""
        found = {"moment": self.moment, "squares": self.squares}
        return found if self.first_pass or self.test is None else {**found, "test": self.test}

    def load(self, tensors: Mapping[str, Tensor], first_pass: bool) -> None:
        """Continue from what :meth:`tensors` gave, in the first pass or a later one."""
        self.first_pass = first_pass
        if not first_pass and self.test is not None:
            self.test = tensors["test"].to(self.moment)
        self.moment.copy_(tensors["moment"])
        self.squares.copy_(tensors["squares"])

    def _products(self, promised: bool = True) -> AbstractContextManager[None]:
        return bfloat16_values(self.moment.device, self.from_bfloat16 and promised)

    def _prefers_grams(self, tokens: int) -> bool:
        m, n = self.rows, self.columns
        if self.test is None:
            return tokens * (n + m) + m * m <= m * n + m * m * n / tokens
        width = self.test.shape[1]
        return tokens * (n + m + width) + 2 * m * width <= 2 * width * (n + m) + m * n

    def _add_whole(self, half: int, x: Tensor, g: Tensor, gram: Tensor | None) -> None:
        if gram is None:
            for tile in _gradient_tiles(g, x):
                self._add_symmetric(half, tile.mT, tile.mT)
                self.squares[half] += tile.square().sum(dtype=torch.float64)
            return
        weighted = gram @ g
        self._add_symmetric(half, g.flatten(0, 1), weighted.flatten(0, 1))
        self.squares[half] += (g * weighted).sum(dtype=torch.float64)

    def _add_sketch(self, half: int, x: Tensor, g: Tensor, gram: Tensor | None, test: Tensor) -> None:
        with self._products(self.first_pass):
            projected = g @ test
        weighted = x @ (x.mT @ projected) if gram is None else gram @ projected
        self.moment[half].addmm_(g.flatten(0, 1).mT, weighted.flatten(0, 1))
        if not self.first_pass:
            return
        if gram is None:
            for tile in _gradient_tiles(g, x):
                self.squares[half] += tile.square().sum(dtype=torch.float64)
            return
        with self._products():
            own = g @ g.mT
        self.squares[half] += (gram * own).sum(dtype=torch.float64)

    def _add_symmetric(self, half: int, left: Tensor, right: Tensor) -> None:
        """Add ``leftᵀ right (m, m)``, which is symmetric, leaving out most of what lies below the diagonal."""
        step = max(192, -(-self.rows // 8))
        for start in range(0, self.rows, step):
            band = slice(start, start + step)
            self.moment[half, band, start:].addmm_(left[:, band].mT, right[:, start:])


def _parts(split: int, rows: int) -> Iterator[tuple[int, slice]]:
    if split > 0:
        yield 0, slice(0, split)
    if split < rows:
        yield 1, slice(split, rows)


def _gradient_tiles(g: Tensor, x: Tensor) -> Iterator[Tensor]:
    """``G_s`` of one sample after another, some columns ``(m, ≤ 512)`` at a time."""
    for gs, xs in zip(g, x, strict=True):
        for start in range(0, xs.shape[1], _TILE):
            yield gs.mT @ xs[:, start : start + _TILE]
