"""Float32 products of values that came from a bfloat16 computation, at that type's speed and without its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def bfloat16_values(device: torch.device, promised: bool = True) -> Iterator[None]:
    """Let float32 products inside the block read their operands as bfloat16 (CPU) or TF32 (CUDA).

    The operands must hold values that bfloat16 represents, such as activations and gradients of a bfloat16 layer that
    were converted to float32. Then every single product is exact, and as sums stay float32 the result is a float32
    product like any other. Processors without bfloat16 products in hardware are left as they are.

    Args:
        device: of the operands.
        promised: whether the operands are of that kind; otherwise nothing is done.
    """
    backends: dict[str, tuple[Any, str]] = {
        "cuda": (torch.backends.cuda.matmul, "tf32"),
        "cpu": (torch.backends.mkldnn.matmul, "bf16"),  # type: ignore[attr-defined]
    }
    backend, precision = backends.get(device.type, (None, ""))
    if not promised or backend is None or (device.type == "cpu" and not _has_fast_bfloat16()):
        yield
        return
    before = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before


def _has_fast_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
