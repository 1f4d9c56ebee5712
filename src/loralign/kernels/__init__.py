"""Fused versions of dense computations, each beside the plain torch function that is its reference."""

from loralign.kernels.fused import fused_is_available, overlap_fused
from loralign.kernels.overlap import TileBuffers, overlap_tile

__all__ = ["TileBuffers", "fused_is_available", "overlap_fused", "overlap_tile"]
