"""The constraint in place of the penalty: taking the alignment-critical part out of the update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loralign.errors import ConfigError
from loralign.guard.layer_subspace import LayerSubspace, Projection, soft_coefficients
from loralign.lora import LoraFactors, factored_norm
from loralign.lora.layers import working_dtype


@torch.no_grad()
def project(
    layers: Sequence[LoraFactors],
    subspaces: Sequence[LayerSubspace | None],
    strength: float | Sequence[float] = 1.0,
    projection: Projection = "hard",
) -> None:
    """``B ← B − ρ U C (UᵀB)`` in place, so that ``ΔW ← (I − ρ P_A) ΔW`` (docs/adapting.md, Penalties and Repair).

    After every optimiser step this is the limit ``λ_A → ∞`` of the alignment penalty; once, after training, it is
    repair. With the hard projector and ``ρ = 1`` it is idempotent. The arithmetic is float32 (float64 for factors in
    float64) whatever the factors' dtype, which they keep.

    Args:
        layers: to be changed.
        subspaces: one for each layer; a layer with ``None`` is left alone.
        strength: ``ρ`` in [0, 1], or one for each layer.
        projection: ``"hard"`` or ``"soft"``.

    Raises:
        ConfigError: a strength outside of [0, 1], or another number of strengths than of layers.
    """
    strengths = [float(strength)] * len(layers) if isinstance(strength, int | float) else [float(s) for s in strength]
    if len(strengths) != len(layers):
        raise ConfigError(f"{len(strengths)} strengths do not fit {len(layers)} layers")
    for layer, value in zip(layers, strengths, strict=True):
        if not 0 <= value <= 1:
            raise ConfigError(f"strength {value!r} must lie in 0 to 1", place=layer.name)
    for layer, subspace, value in zip(layers, subspaces, strengths, strict=True):
        if subspace is None or value == 0:
            continue
        B = layer.B.to(working_dtype(layer.B))
        basis = subspace.basis.to(B)
        inside = basis.mT @ B
        if projection != "hard":
            inside = soft_coefficients(subspace.eigenvalues.double(), projection).to(B)[:, None] * inside
        layer.B.copy_(torch.addmm(B, basis, inside, alpha=-value))


@torch.no_grad()
def update_shares(layers: Sequence[LoraFactors], subspaces: Sequence[LayerSubspace | None]) -> Tensor:
    """Share of ``‖ΔW‖²_F`` that lies in the subspace, ``‖U UᵀΔW‖²/‖ΔW‖²``, per layer: ``(layers,)`` float64 on the CPU.

    Zero for a layer without a subspace and for one without an update.
    """
    shares = []
    for layer, subspace in zip(layers, subspaces, strict=True):
        share = torch.zeros((), dtype=torch.float64)
        if subspace is not None:
            A, B = layer.A.double(), layer.B.double()
            gram, coordinates = A @ A.mT, subspace.basis.to(B).mT @ B
            total = ((B @ gram) * B).sum()
            inside = ((coordinates @ gram) * coordinates).sum()
            share = torch.where(total > 0, inside / total, torch.zeros_like(total))
        shares.append(share)
    return _on_cpu(shares)


@torch.no_grad()
def total_share(layers: Sequence[LoraFactors], subspaces: Sequence[LayerSubspace | None]) -> float:
    """Share of the whole update that lies in the subspace, ``Σ‖U UᵀΔW‖²/Σ‖ΔW‖²`` over layers; 0 without an update."""
    energies = _on_cpu([layer.scaling * factored_norm(layer.B, layer.A) for layer in layers]).square()
    total = float(energies.sum())
    return float((energies * update_shares(layers, subspaces)).sum()) / total if total > 0 else 0.0


def _on_cpu(scalars: Sequence[Tensor]) -> Tensor:
    """Float64 scalars from any devices as ``(k,)`` on the CPU, with a single wait for each device."""
    found = torch.zeros(len(scalars), dtype=torch.float64)
    for device in {one.device for one in scalars}:
        members = [index for index, one in enumerate(scalars) if one.device == device]
        found[members] = torch.stack([scalars[index] for index in members]).cpu()
    return found
