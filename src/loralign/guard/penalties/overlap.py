"""The Riemannian overlap: entries that both parts of the update touch, counted more where the weight is large."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.capture.sketch import sketch_seed
from loralign.guard.penalties.cotangents import Cotangents
from loralign.guard.penalties.options import PenaltyOptions
from loralign.guard.penalties.split import LayerStack, Parts
from loralign.kernels import TileBuffers, fused_is_available, overlap_fused, overlap_tile
from loralign.lora import LoraFactors
from loralign.lora.base_weight import Rows, read_rows, stored_rows

# Entries of W at once: the buffers of one tile fit a CPU's cache; a GPU wants more work per call.
_TILE = {"cpu": 2**17}
_LARGE_TILE = 2**22


@dataclass(frozen=True)
class RowDraw:
    """A random share of every layer's rows, without replacement, from a seed of its own for every draw and layer.

    Attributes:
        fraction: in (0, 1].
        seed: of the run.
        number: of the draw.
    """

    fraction: float
    seed: int
    number: int

    def rows(self, layer: int, height: int) -> tuple[Rows, int]:
        """Which rows of a layer, and how many."""
        count = max(1, round(self.fraction * height))
        if count >= height:
            return slice(0, height), height
        generator = torch.Generator().manual_seed(sketch_seed(self.seed, self.number, layer))
        return torch.randperm(height, generator=generator)[:count].sort().values, count


def overlap_term(
    stack: LayerStack,
    parts: Parts,
    options: PenaltyOptions,
    draw: RowDraw,
    weight: float,
    cotangents: Cotangents | None,
) -> Tensor:
    """``E_RM = Σ_ij η_ij |ΔW_A,ij·ΔW_T,ij|``, ``η_ij = 1 + β σ(|W_ij + ΔW_ij| − τ)``: ``(L,)`` float64.

    Source: docs/adapting.md, Penalties. Value and gradient come from one pass over row tiles; what a tile needs is
    overwritten by the next one, and ``W`` is read, or dequantised, a tile at a time. With ``β = 0`` it is not read.
    From a share of the rows this is an unbiased estimate of value and gradient.

    Args:
        stack: the layers.
        parts: of their updates.
        options: ``β``, ``τ`` and the size of tiles.
        draw: which rows.
        weight: of the gradient.
        cotangents: where ``weight`` times the gradient is added.
    """
    work = _Workspace(stack, parts, options)
    values = []
    for position, layer in enumerate(stack.layers):
        value = torch.zeros((), dtype=torch.float64, device=parts.A.device)
        # One of the parts is zero where no subspace covers the layer.
        if stack.covered[position]:
            rows, count = draw.rows(stack.indices[position], layer.shape[0])
            if isinstance(rows, Tensor):
                # Once: every use on a GPU would copy them there anew, and wait for it.
                rows = rows.to(parts.A.device)
            value = work.layer(position, layer, rows, count, weight, cotangents)
        values.append(value)
    return torch.stack(values)


class _Workspace:
    """The buffers of one stack's tiles, and how a layer goes through them."""

    def __init__(self, stack: LayerStack, parts: Parts, options: PenaltyOptions) -> None:
        height, width = stack.layers[0].shape
        device, dtype = parts.A.device, parts.A.dtype
        rank = stack.layers[0].rank
        limit = options.tile_rows or max(1, _TILE.get(device.type, _LARGE_TILE) // width)
        self._tile = min(height, limit)
        self._beta, self._tau = options.beta, options.tau
        fused = fused_is_available(device, dtype, rank)
        self._buffers = None if fused else TileBuffers(self._tile * width, self._tile, rank, dtype, device)
        self._parts = parts
        self._right = stack.scaling.to(dtype)[:, None, None] * parts.A
        self._gradient_left = torch.empty(2, height, rank, dtype=dtype, device=device)
        self._gradient_right = torch.empty(rank, width, dtype=dtype, device=device)

    def layer(
        self,
        position: int,
        layer: LoraFactors,
        rows: Rows,
        count: int,
        weight: float,
        cotangents: Cotangents | None,
    ) -> Tensor:
        """Value of one layer over some rows, scaled up to all of them."""
        wanted = cotangents is not None and weight > 0
        parts = self._parts
        left = torch.stack([parts.aligned[position, rows], parts.task[position, rows]])
        gradient_left = self._gradient_left[:, :count] if wanted else None
        gradient_right = self._gradient_right.zero_() if wanted else None
        right = self._right[position]
        total = torch.zeros((), dtype=torch.float64, device=right.device)
        tiles = -(-count // self._tile)
        size = -(-count // tiles)
        for start in range(0, count, size):
            here = slice(start, min(count, start + size))
            own = None if gradient_left is None else gradient_left[:, here]
            total += self._tile_value(layer, _within(rows, here), left[:, here], right, own, gradient_right)
        share = layer.shape[0] / count
        if cotangents is not None and gradient_left is not None and gradient_right is not None:
            gradient_left *= weight * share
            cotangents.aligned[position, rows] += gradient_left[0]
            cotangents.task[position, rows] += gradient_left[1]
            cotangents.A[position].add_(gradient_right, alpha=weight * share * layer.scaling)
        return total * share

    def _tile_value(
        self,
        layer: LoraFactors,
        rows: Rows,
        left: Tensor,
        right: Tensor,
        gradient_left: Tensor | None,
        gradient_right: Tensor | None,
    ) -> Tensor:
        options = {"beta": self._beta, "tau": self._tau}
        if self._buffers is None:
            base = stored_rows(layer, rows) if self._beta > 0 else None
            return overlap_fused(
                base, left, right, **options, gradient_left=gradient_left, gradient_right=gradient_right
            )
        base = None
        if self._beta > 0:
            base = read_rows(layer, rows, out=self._buffers.weight(left.shape[1], right.shape[1]))
        return overlap_tile(
            base,
            left,
            right,
            **options,
            buffers=self._buffers,
            gradient_left=gradient_left,
            gradient_right=gradient_right,
        )


def _within(rows: Rows, here: slice) -> Rows:
    """Rows ``here`` of a selection."""
    return slice(rows.start + here.start, rows.start + here.stop) if isinstance(rows, slice) else rows[here]
