"""Reading rows of a LoRA layer's frozen weight, however it is stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralign.errors import AdapterError
from loralign.lora.layers import LoraFactors

Rows = slice | Tensor
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def base_weight_rows(layer: LoraFactors, start: int, stop: int, *, out: Tensor | None = None) -> Tensor:
    """Rows ``start … stop − 1`` of the frozen weight ``W (m, n)`` as ``(stop − start, n)`` float32.

    ``Linear``, the transposed ``Conv1D`` of GPT-2, and the 4-bit weights of bitsandbytes, of which these rows alone are
    dequantised (to the dtype that the layer itself computes in, then to float32).

    Args:
        layer: whose base is read.
        start: first row, ``0 ≤ start ≤ stop``.
        stop: the row after the last one, at most ``m``.
        out: where to write instead, of that shape and any floating dtype.

    Raises:
        IndexError: rows outside of ``0 … m``.
        AdapterError: a base whose weight is stored in another way, is absent on this process (sharded or offloaded), or
            was repacked by bitsandbytes for inference on the CPU.
    """
    height = layer.shape[0]
    if not 0 <= start <= stop <= height:
        raise IndexError(f"rows {start}:{stop} of a weight with {height} rows")
    return read_rows(layer, slice(start, stop), out)


def read_rows(layer: LoraFactors, rows: Rows, out: Tensor | None = None) -> Tensor:
    """As :func:`base_weight_rows`, for a slice with both ends or for a ``(k,)`` tensor of row numbers."""
    stored = stored_rows(layer, rows)
    if out is None:
        return stored.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return out.copy_(stored)


def stored_rows(layer: LoraFactors, rows: Rows) -> Tensor:
    """The rows in the dtype in which the layer computes: a view of the weight where they are stored plainly."""
    weight = getattr(layer.base, "weight", None)
    if not isinstance(weight, Tensor):
        raise _unreadable(layer, f"{type(layer.base).__name__} holds no weight")
    if type(weight).__name__ == "Params4bit":
        return _four_bit_rows(layer, weight, rows)
    if weight.dtype not in _PLAIN or not isinstance(layer.base, nn.Linear | Conv1D):
        raise _unreadable(layer, f"the {weight.dtype} weight of {type(layer.base).__name__} cannot be read")
    whole = weight.detach().mT if isinstance(layer.base, Conv1D) else weight.detach()
    if whole.shape != layer.shape or whole.is_meta:
        raise _unreadable(layer, f"the base weight is absent on this process (shape {tuple(weight.shape)})")
    return whole[rows]


def _four_bit_rows(layer: LoraFactors, weight: Any, rows: Rows) -> Tensor:
    """Dequantised rows of a ``Params4bit``: blocks of ``blocksize`` values run through the rows one after another."""
    state = weight.quant_state
    if state is None or tuple(state.shape) != layer.shape:
        raise _unreadable(layer, "the 4-bit weight is not quantised yet, or absent on this process")
    if getattr(state, "packing_format_for_cpu", False):
        raise AdapterError(
            "bitsandbytes has repacked the 4-bit weight for inference on the CPU, and training on it would be wrong",
            place=layer.name,
            fix="load the model again, and keep it in train mode or run it on a GPU",
        )
    packed = weight.detach().reshape(-1).view(torch.uint8)
    height, width = layer.shape
    size = state.blocksize
    if isinstance(rows, slice):
        first, last = rows.start * width // size, -(-rows.stop * width // size)
        values = _decode(
            state,
            packed[first * size // 2 : last * size // 2],
            _block_maxima(state, slice(first, last)),
            height * width,
        )
        offset = rows.start * width - first * size
        return values[offset : offset + (rows.stop - rows.start) * width].view(-1, width)
    if width % size:
        return torch.cat([_four_bit_rows(layer, weight, slice(row, row + 1)) for row in rows.tolist()])
    blocks = (rows[:, None] * (width // size) + torch.arange(width // size, device=rows.device)).flatten()
    return _decode(state, packed.view(-1, size // 2)[blocks], _block_maxima(state, blocks), height * width).view(
        -1, width
    )


def _block_maxima(state: Any, blocks: Rows) -> Tensor:
    """Largest magnitude per block, ``(k,)`` float32; double quantisation keeps them in 8 bits, in blocks of its own."""
    stored: Tensor = state.absmax[blocks]
    if not state.nested:
        return stored.float()
    second = state.state2
    numbers = torch.arange(blocks.start, blocks.stop, device=stored.device) if isinstance(blocks, slice) else blocks
    scales: Tensor = second.absmax[numbers // second.blocksize]
    maxima: Tensor = second.code[stored.long()] * scales + state.offset
    return maxima.float()


def _decode(state: Any, packed: Tensor, maxima: Tensor, total: int) -> Tensor:
    """Values of whole blocks, flat; the weight's last block may be cut short by its ``total`` number of values."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    count = min(packed.numel() * 2, total)
    whole = count % state.blocksize == 0
    shape = torch.Size((count // state.blocksize, state.blocksize) if whole else (1, count))
    part = QuantState(
        absmax=maxima,
        shape=shape,
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
    values: Tensor = dequantize_4bit(packed.reshape(-1, 1), part)
    return values.flatten()


def _unreadable(layer: LoraFactors, problem: str) -> AdapterError:
    return AdapterError(
        problem,
        place=layer.name,
        fix="the Riemannian overlap reads W: use a Linear, Conv1D or bitsandbytes 4-bit base, or set alpha to 0",
    )
