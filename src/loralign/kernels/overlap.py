"""One row tile of the Riemannian overlap, value and gradient in the same pass: plain torch, the reference."""

from __future__ import annotations

import torch
from torch import Tensor


class TileBuffers:
    """Working memory of :func:`overlap_tile`, made once and used for every tile of a call.

    Args:
        elements: largest number of entries ``rows · n`` of a tile.
        rows: largest number of rows of a tile.
        rank: largest rank ``r``.
        dtype: float32 or float64.
        device: of the tiles.
    """

    _DENSE = 6

    def __init__(self, elements: int, rows: int, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self._dense = torch.empty(self._DENSE, elements, dtype=dtype, device=device)
        self._thin = torch.empty(2, 2 * rows * rank, dtype=dtype, device=device)

    def dense(self, number: int, rows: int, width: int, count: int = 1) -> Tensor:
        """The buffers ``number … number + count − 1`` as one ``(count · rows, width)`` matrix."""
        flat = self._dense.view(-1)[number * self._dense.shape[1] :][: count * rows * width]
        return flat.view(count * rows, width)

    def thin(self, number: int, rows: int, rank: int) -> Tensor:
        """A ``(2, rows, rank)`` buffer for the factors' rows."""
        return self._thin[number, : 2 * rows * rank].view(2, rows, rank)

    def weight(self, rows: int, width: int) -> Tensor:
        """Where the tile of ``W`` is to be written, ``(rows, width)``; :func:`overlap_tile` overwrites it."""
        return self.dense(2, rows, width)


def overlap_tile(
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    *,
    beta: float,
    tau: float,
    buffers: TileBuffers,
    gradient_left: Tensor | None = None,
    gradient_right: Tensor | None = None,
) -> Tensor:
    """``E = Σ η|a·t|`` over a tile: ``a = left[0] right``, ``t = left[1] right``, ``η = 1 + β σ(|W + a + t| − τ)``.

    Source: docs/adapting.md, Penalties. The gradient counts the dependence of ``η`` on ``a`` and ``t``; at the kinks
    of ``|·|`` it takes the subgradient 0 of ``|a·t|``. Every entry is touched in place: the tile costs six buffers of
    its size, whatever else is asked.

    Args:
        weight: ``(rows, n)`` rows of ``W`` in the working dtype, overwritten; it may be ``buffers.weight(rows, n)``.
            Not read where ``β = 0``.
        left: ``(2, rows, r)``: rows of ``B_A`` and of ``B_T``.
        right: ``(r, n)``: ``s·A``.
        beta: ``β ≥ 0``.
        tau: ``τ``.
        buffers: at least as large as the tile.
        gradient_left: ``(2, rows, r)``, where the gradient with respect to ``left`` is written.
        gradient_right: ``(r, n)``, to which the gradient with respect to ``right`` is added.

    Returns:
        The value, a scalar in the working dtype.
    """
    _, rows, rank = left.shape
    width = right.shape[1]
    parts = buffers.dense(0, rows, width, 2)
    first, second = parts[:rows], parts[rows:]
    torch.mm(buffers.thin(0, rows, rank).copy_(left).view(2 * rows, rank), right, out=parts)
    product = torch.mul(first, second, out=buffers.dense(3, rows, width))
    if beta > 0:
        if weight is None:
            raise ValueError("the weight is needed where beta is not 0")
        value = _weighted(weight, first, second, product, beta, tau, buffers, gradients=gradient_left is not None)
    else:
        value = _unweighted(first, second, product, buffers, gradients=gradient_left is not None)
    if gradient_left is None or gradient_right is None:
        return value
    # The buffer of a now holds the gradient with respect to t, and the other way round.
    swapped = buffers.thin(1, rows, rank)
    torch.mm(parts, right.mT, out=swapped.view(2 * rows, rank))
    gradient_left.copy_(swapped.flip(0))
    swapped.copy_(left.flip(0))
    gradient_right.addmm_(swapped.view(2 * rows, rank).mT, parts)
    return value


def _weighted(
    weight: Tensor,
    aligned: Tensor,
    task: Tensor,
    product: Tensor,
    beta: float,
    tau: float,
    buffers: TileBuffers,
    *,
    gradients: bool,
) -> Tensor:
    """``Σ η|a·t|`` with ``product = a·t``; ``aligned`` becomes ``∂E/∂t`` and ``task`` becomes ``∂E/∂a``."""
    weight.add_(aligned).add_(task)
    if not gradients:
        gate = weight.abs_().sub_(tau).sigmoid_()
        product.abs_()
        return product.sum() + beta * (product.view(-1) @ gate.view(-1))
    rows, width = product.shape
    # The part that η brings, the same for a and t: |a·t| β σ'(|v| − τ) sign(v).
    through = torch.copysign(product, weight, out=buffers.dense(4, rows, width)).mul_(beta)
    gate = weight.abs_().sub_(tau).sigmoid_()
    torch.ops.aten.sigmoid_backward.grad_input(through, gate, grad_input=through)
    sign = torch.sign(product, out=buffers.dense(5, rows, width))
    slope = torch.addcmul(sign, sign, gate, value=beta, out=sign)
    value = product.view(-1) @ slope.view(-1)
    torch.addcmul(through, slope, task, out=task)
    torch.addcmul(through, slope, aligned, out=aligned)
    return value


def _unweighted(aligned: Tensor, task: Tensor, product: Tensor, buffers: TileBuffers, *, gradients: bool) -> Tensor:
    """``Σ|a·t|``; ``aligned`` becomes ``∂E/∂t`` and ``task`` becomes ``∂E/∂a``."""
    if not gradients:
        return product.abs_().sum()
    rows, width = product.shape
    sign = torch.sign(product, out=buffers.dense(4, rows, width))
    aligned.mul_(sign)
    task.mul_(sign)
    return product.view(-1) @ sign.view(-1)
