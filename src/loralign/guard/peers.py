"""The peers that a repair is measured against: plain scaling and Safe LoRA (docs/adapting.md, Repair)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from loralign.errors import ConfigError, ModelError
from loralign.guard.identity import base_modules, layer_identity
from loralign.lora import LoraFactors, base_weight_rows, canonical_name, factored_inner
from loralign.lora.layers import working_dtype

# Rows of a tile are chosen for this many entries: 16 MiB in float32.
TILE_ENTRIES = 1 << 22


@dataclass(frozen=True)
class PeerOptions:
    """Settings of the peers, with the defaults of their authors.

    Args:
        threshold: Safe LoRA projects the layers whose similarity is below it, ``τ`` in ``[−1, 1]``.
        projected_layers: Safe LoRA projects this many layers instead, those of the least similarity.
        top_k: PEFT's intruder reduction looks at this many leading singular vectors of the adapted weight.
        epsilon: one of them is an intruder when no singular vector of the base weight has a larger cosine with it.

    Raises:
        ConfigError: a value out of its range.
    """

    threshold: float = 0.5
    projected_layers: int | None = None
    top_k: int = 10
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        for value, low, name in ((self.threshold, -1, "threshold"), (self.epsilon, 0, "epsilon")):
            if not (math.isfinite(value) and low <= value <= 1):
                raise ConfigError(f"{name} {value} is not between {low} and 1", fix="give a cosine, such as 0.5")
        for count, name in ((self.projected_layers, "projected_layers"), (self.top_k, "top_k")):
            if count is not None and count < 1:
                raise ConfigError(f"{name} {count} is less than one", fix="give a number of at least one")


class ScaleRepairer:
    """``B' = (1 − ρ) B``: the whole adapter is scaled down.

    Args:
        layers: all layers of the adapter.
    """

    default_strength = 1.0
    by_layer = True

    def __init__(self, layers: Sequence[LoraFactors]) -> None:
        self._layers = list(layers)

    def strengths(self, strength: float) -> list[float]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        return [strength] * len(self._layers)

    @torch.no_grad()
    def apply(self, strengths: Sequence[float]) -> list[float]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        for layer, strength in zip(self._layers, strengths, strict=True):
            layer.B.copy_((1 - strength) * layer.B.to(working_dtype(layer.B)))
        return list(strengths)

    def cosines(self) -> list[float | None]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        return [None] * len(self._layers)


class SafeLoraRepairer:
    """Safe LoRA (Hsu et al., arXiv:2405.16833, section 3): project chosen layers on what alignment once changed.

    With the alignment matrix ``V = W_aligned − W_unaligned (m, n)``, the operator is ``C = V Vᵀ/‖V‖_F``, the authors'
    inexpensive stand-in for the projector ``V(VᵀV)⁻¹Vᵀ``, and ``ΔW' = C ΔW``, that is ``B' = C B``, in the layers where
    ``cos(C ΔW, ΔW)`` is below a threshold ``τ``, or in a given number of those where it is least. ``W_aligned`` is the
    adapter's own base. ``C`` is no projector: it scales with ``‖V‖``, so a slight alignment shrinks a projected layer
    to almost nothing.

    Neither ``C (m, m)`` nor ``V`` is ever whole: ``C B = V (VᵀB)/‖V‖_F`` comes from two passes over tiles of rows. A
    layer in which the two models agree has no ``C`` and stays as it is.

    A strength below one, ours, mixes: ``B' = (1 − ρ) B + ρ C B`` in the chosen layers.

    Args:
        layers: all layers of the adapter, on the aligned base.
        unaligned: the base before alignment, with modules of the same names and shapes; a PEFT model's base counts.
        options: how layers are chosen.

    Raises:
        ModelError: a layer is missing in the unaligned base or has another shape there, or no layer differs.
    """

    default_strength = 1.0
    by_layer = True

    def __init__(self, layers: Sequence[LoraFactors], unaligned: nn.Module, options: PeerOptions) -> None:
        self._layers = list(layers)
        others = _counterparts(layers, unaligned)
        self._projected = [_apply_alignment(layer, other) for layer, other in zip(layers, others, strict=True)]
        if all(projected is None for projected in self._projected):
            raise ModelError(
                "the unaligned base has the same weights as the adapter's base",
                fix="give the model as it was before it was aligned",
            )
        self._cosines = [
            None if projected is None else _cosine(layer, projected)
            for layer, projected in zip(layers, self._projected, strict=True)
        ]
        self._chosen = _chosen(self._cosines, options)

    def strengths(self, strength: float) -> list[float]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        return [strength if index in self._chosen else 0.0 for index in range(len(self._layers))]

    @torch.no_grad()
    def apply(self, strengths: Sequence[float]) -> list[float]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        for layer, projected, strength in zip(self._layers, self._projected, strengths, strict=True):
            if projected is not None and strength > 0:
                layer.B.copy_((1 - strength) * layer.B.to(working_dtype(layer.B)) + strength * projected)
        return list(strengths)

    def cosines(self) -> list[float | None]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        return list(self._cosines)


@torch.no_grad()
def _apply_alignment(aligned: LoraFactors, unaligned: LoraFactors) -> Tensor | None:
    """``C B (m, r)`` in float32, or ``None`` where ``V = 0``; see :class:`SafeLoraRepairer`."""
    B = aligned.B.detach().float()
    rows, columns = aligned.shape
    step = max(1, TILE_ENTRIES // columns)
    tiles = [(start, min(start + step, rows)) for start in range(0, rows, step)]

    def change(start: int, stop: int) -> Tensor:
        other = base_weight_rows(unaligned, start, stop)
        return base_weight_rows(aligned, start, stop).to(B) - other.to(B)

    coefficients = B.new_zeros(columns, B.shape[1])
    squared_norm = 0.0
    for start, stop in tiles:
        tile = change(start, stop)
        coefficients += tile.mT @ B[start:stop]
        squared_norm += float(torch.linalg.vector_norm(tile, dtype=torch.float64)) ** 2
    if squared_norm == 0:
        return None
    projected = torch.cat([change(start, stop) @ coefficients for start, stop in tiles])
    return projected.div_(squared_norm**0.5)


def _cosine(layer: LoraFactors, projected: Tensor) -> float:
    """``cos(C ΔW, ΔW)``; zero where either vanishes, as nothing of the update is kept then."""
    A, B = layer.A.detach(), layer.B.detach()
    inner = factored_inner(projected, A, B, A)
    norms = factored_inner(projected, A, projected, A) * factored_inner(B, A, B, A)
    return float(inner / norms.sqrt()) if norms > 0 else 0.0


def _chosen(cosines: Sequence[float | None], options: PeerOptions) -> set[int]:
    known = sorted((cosine, index) for index, cosine in enumerate(cosines) if cosine is not None)
    if options.projected_layers is not None:
        return {index for _, index in known[: options.projected_layers]}
    return {index for cosine, index in known if cosine < options.threshold}


def _counterparts(layers: Sequence[LoraFactors], unaligned: nn.Module) -> list[LoraFactors]:
    """The layers with the unaligned model's modules as their bases."""
    names = [canonical_name(layer.name) for layer in layers]
    bases = base_modules(unaligned, names)
    found = []
    for name, layer in zip(names, layers, strict=True):
        if name not in bases:
            raise ModelError("the unaligned base has no such layer", place=name, fix="give a model of the same kind")
        theirs = layer_identity(bases[name])
        if (theirs.rows, theirs.columns) != layer.shape:
            raise ModelError(
                f"the unaligned base has shape {(theirs.rows, theirs.columns)} where the adapter's has {layer.shape}",
                place=name,
                fix="give a model of the same size",
            )
        found.append(replace(layer, base=bases[name]))
    return found
