"""The random test matrices of the left sketch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sketch_seed(seed: int, draw: int, layer: int) -> int:
    """Seed of one layer's test matrix in one draw: a bijective mixing of the three numbers (SplitMix64's finaliser).

    Neighbouring draws and layers must not share or shift each other's random streams, and every rank and every
    resumed run must find the same seed again.
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + draw * 0xD1B54A32D192ED03 + layer * 0x8CB92BA72F3D8DD7 + 1) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) >> 1


def sketch_matrix(rows: int, size: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gaussian ``Ψ (rows, size)`` with entries ``N(0, 1/size)``, so that ``E[Ψ Ψᵀ] = I`` (docs/concepts.md, full part).

    Drawn on the CPU in float32 whatever the device, so that all ranks and devices of a run hold the same matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    entries: Tensor = torch.randn(rows, size, generator=generator)
    entries = (entries / math.sqrt(size)).to(dtype)
    # From pinned memory a GPU takes its copy when it comes to it; backward, which asks for these, goes on meanwhile.
    return entries.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else entries.to(device)
