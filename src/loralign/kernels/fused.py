"""When the fused kernels are used, and how they are called."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from functools import lru_cache

import torch
from torch import Tensor

# What one block of programs needs must fit the shared memory of small GPUs, too.
_LARGEST_RANK = 64


def fused_is_available(device: torch.device, dtype: torch.dtype, rank: int) -> bool:
    """Whether :func:`overlap_fused` serves such factors: float32 on CUDA, ``r`` of at most 64, and Triton installed."""
    return device.type == "cuda" and dtype == torch.float32 and rank <= _LARGEST_RANK and _has_triton()


def overlap_fused(
    weight: Tensor | None,
    left: Tensor,
    right: Tensor,
    *,
    beta: float,
    tau: float,
    gradient_left: Tensor | None = None,
    gradient_right: Tensor | None = None,
) -> Tensor:
    """:func:`~loralign.kernels.overlap.overlap_tile` as one Triton kernel that keeps all entries in registers.

    Products are taken in full float32, not TF32. The result does not change from run to run.

    Args:
        weight: ``(rows, n)`` rows of ``W``, any strides and floating dtype, not written to; ``None`` is ``β = 0``.
        left: ``(2, rows, r)`` float32: rows of ``B_A`` and of ``B_T``.
        right: ``(r, n)`` float32: ``s·A``.
        beta: ``β``.
        tau: ``τ``.
        gradient_left: ``(2, rows, r)``, where the gradient with respect to ``left`` is written.
        gradient_right: ``(r, n)``, to which the gradient with respect to ``right`` is added.

    Returns:
        The value, a float64 scalar.
    """
    kernel = importlib.import_module("loralign.kernels.overlap_triton")
    value: Tensor = kernel.launch(
        weight, left, right, beta=beta, tau=tau, gradient_left=gradient_left, gradient_right=gradient_right
    )
    return value


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    # Triton builds every kernel's launcher with the system's C compiler, and fails at the first launch without one.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and importlib.util.find_spec("triton") is not None
