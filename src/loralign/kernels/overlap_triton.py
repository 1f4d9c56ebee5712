"""The Riemannian overlap fused for CUDA. Imports Triton, so it is itself imported only where that is present."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

if TYPE_CHECKING:
    constexpr = Any
else:
    constexpr = tl.constexpr

# Column blocks that one program goes through.
_STEPS = 4


def _overlap_kernel(  # type: ignore[no-untyped-def]  # Triton evaluates every annotation
    weight,
    left,
    right,
    values,
    gradient_left,
    gradient_right,
    rows,
    width,
    rank,
    weight_row_stride,
    weight_column_stride,
    beta,
    tau,
    HAS_WEIGHT: constexpr,
    HAS_GRADIENTS: constexpr,
    BLOCK_ROWS: constexpr,
    BLOCK_COLUMNS: constexpr,
    BLOCK_RANK: constexpr,
    STEPS: constexpr,
):
    """One program: a block of rows through ``STEPS`` blocks of columns; nothing is shared between programs."""
    row_block = tl.program_id(0)
    column_chunk = tl.program_id(1)
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    factor = tl.arange(0, BLOCK_RANK)
    row_inside = row < rows
    factor_inside = factor < rank
    left_at = row[:, None] * rank + factor[None, :]
    left_inside = row_inside[:, None] & factor_inside[None, :]
    part = rows * rank
    aligned_factor = tl.load(left + left_at, mask=left_inside, other=0.0)
    task_factor = tl.load(left + part + left_at, mask=left_inside, other=0.0)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    toward_aligned = tl.zeros((BLOCK_ROWS, BLOCK_RANK), dtype=tl.float32)
    toward_task = tl.zeros((BLOCK_ROWS, BLOCK_RANK), dtype=tl.float32)
    for step in range(STEPS):
        column = (column_chunk * STEPS + step) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        column_inside = column < width
        right_at = factor[:, None] * width + column[None, :]
        right_inside = factor_inside[:, None] & column_inside[None, :]
        rows_of_a = tl.load(right + right_at, mask=right_inside, other=0.0)
        # Outside of the tile both parts are zero, and so is everything that follows from them.
        a = tl.dot(aligned_factor, rows_of_a, input_precision="ieee")
        t = tl.dot(task_factor, rows_of_a, input_precision="ieee")
        product = a * t
        magnitude = tl.abs(product)
        sign = tl.where(product > 0, 1.0, tl.where(product < 0, -1.0, 0.0))
        slope = sign
        through = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
        if HAS_WEIGHT:
            weight_at = row[:, None].to(tl.int64) * weight_row_stride
            weight_at += column[None, :].to(tl.int64) * weight_column_stride
            inside = row_inside[:, None] & column_inside[None, :]
            v = tl.load(weight + weight_at, mask=inside, other=0.0).to(tl.float32) + a + t
            gate = tl.sigmoid(tl.abs(v) - tau)
            slope = sign * (1.0 + beta * gate)
            through = tl.where(v < 0, -1.0, 1.0) * magnitude * beta * gate * (1.0 - gate)
        total += tl.sum(slope * product, axis=1)
        if HAS_GRADIENTS:
            by_aligned = slope * t + through
            by_task = slope * a + through
            columns_of_a = tl.trans(rows_of_a)
            toward_aligned += tl.dot(by_aligned, columns_of_a, input_precision="ieee")
            toward_task += tl.dot(by_task, columns_of_a, input_precision="ieee")
            toward_right = tl.dot(tl.trans(aligned_factor), by_aligned, input_precision="ieee")
            toward_right += tl.dot(tl.trans(task_factor), by_task, input_precision="ieee")
            offset = row_block.to(tl.int64) * rank * width
            tl.store(gradient_right + offset + right_at, toward_right, mask=right_inside)
    tl.store(values + row_block * tl.num_programs(1) + column_chunk, tl.sum(total, axis=0))
    if HAS_GRADIENTS:
        offset = column_chunk.to(tl.int64) * 2 * part
        tl.store(gradient_left + offset + left_at, toward_aligned, mask=left_inside)
        tl.store(gradient_left + offset + part + left_at, toward_task, mask=left_inside)


# The last tile of a layer is shorter than the others: no variant of its own for it.
_kernel = triton.jit(_overlap_kernel, do_not_specialize=["rows"])


def launch(
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    *,
    beta: float,
    tau: float,
    gradient_left: Tensor | None,
    gradient_right: Tensor | None,
) -> Tensor:
    """Run the kernel on one tile; see :func:`~loralign.kernels.fused.overlap_fused`.

    Every program writes partial sums of its own, which are then added in a fixed order: the result is the same in every
    run, as it would not be with atomic additions. The partial sums for ``right`` take ``rows · n · r/64`` numbers.
    """
    _, rows, rank = left.shape
    width = right.shape[1]
    left, right = left.contiguous(), right.contiguous()
    block_rank = max(16, triton.next_power_of_2(rank))
    block = 64 if block_rank <= 32 else 32
    grid = (triton.cdiv(rows, block), triton.cdiv(width, block * _STEPS))
    has_gradients = gradient_left is not None and gradient_right is not None
    values = torch.empty(grid[0] * grid[1], dtype=torch.float32, device=left.device)
    partial_left = torch.empty((grid[1], *left.shape) if has_gradients else 1, dtype=torch.float32, device=left.device)
    partial_right = torch.empty(
        (grid[0], *right.shape) if has_gradients else 1, dtype=torch.float32, device=left.device
    )
    strides = (0, 0) if weight is None else weight.stride()
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(left):  # type: ignore[no-untyped-call]
        _kernel[grid](
            right if weight is None else weight,
            left,
            right,
            values,
            partial_left,
            partial_right,
            rows,
            width,
            rank,
            *strides,
            beta,
            tau,
            HAS_WEIGHT=weight is not None,
            HAS_GRADIENTS=has_gradients,
            BLOCK_ROWS=block,
            BLOCK_COLUMNS=block,
            BLOCK_RANK=block_rank,
            STEPS=_STEPS,
        )
    if gradient_left is not None and gradient_right is not None:
        gradient_left.copy_(partial_left.sum(dim=0))
        gradient_right += partial_right.sum(dim=0)
    return values.sum(dtype=torch.float64)
