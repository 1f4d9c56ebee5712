"""What every method of repair has in common, and the one of this project: projection out of the Fisher subspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from loralign.guard.projection import project
from loralign.guard.subspace import LayerSubspace, Projection, soft_coefficients
from loralign.lora import LoraFactors


class Repairer(Protocol):
    """A method of repair, made for the layers of one adapter as it came.

    Attributes:
        default_strength: the strength where none is asked for.
        by_layer: whether every layer may have a strength of its own.
    """

    default_strength: float
    by_layer: bool

    def strengths(self, strength: float) -> list[float]:
        """One strength per layer, zero for the layers that the method leaves as they are."""
        ...

    def apply(self, strengths: Sequence[float]) -> list[float]:
        """Repair the layers, which hold the factors that they came with, and give the strengths that came to bear."""
        ...

    def cosines(self) -> list[float | None]:
        """The similarity by which layers were chosen, one per layer; ``None`` where the method has none."""
        ...


class ProjectionRepairer:
    """``B' = B − ρ U C (UᵀB)`` in every layer that a subspace covers (docs/adapting.md, Repair).

    Args:
        layers: all layers of the adapter.
        subspaces: ``U (m, q)`` of each, or ``None`` where a layer is not covered.
        projection: ``"hard"`` or ``"soft"``.
        per_layer: let :func:`fisher_strengths` give every layer its own strength.
    """

    default_strength = 1.0
    by_layer = True

    def __init__(
        self,
        layers: Sequence[LoraFactors],
        subspaces: Sequence[LayerSubspace | None],
        projection: Projection = "hard",
        per_layer: bool = False,
    ) -> None:
        self._layers = list(layers)
        self._subspaces = list(subspaces)
        self._projection = projection
        self._curvatures = update_curvatures(layers, subspaces, projection) if per_layer else None

    def strengths(self, strength: float) -> list[float]:
        """See :class:`Repairer`."""
        if self._curvatures is not None:
            return fisher_strengths(*self._curvatures, strength)
        return [0.0 if subspace is None else strength for subspace in self._subspaces]

    def apply(self, strengths: Sequence[float]) -> list[float]:
        """See :class:`Repairer`."""
        project(self._layers, self._subspaces, strengths, self._projection)
        return list(strengths)

    def cosines(self) -> list[float | None]:
        """See :class:`Repairer`."""
        return [None] * len(self._layers)


class RankRepairer:
    """``B' = B − U_k (U_kᵀB)`` with the ``k = ⌈κq⌉`` leading of every layer's ``q`` directions, ``κ`` the strength.

    Of all projectors of rank ``k`` onto directions of the subspace it takes out most of the Fisher matrix.

    Args:
        layers: all layers of the adapter.
        subspaces: ``U (m, q)`` of each, or ``None`` where a layer is not covered.
    """

    default_strength = 1.0
    by_layer = True

    def __init__(self, layers: Sequence[LoraFactors], subspaces: Sequence[LayerSubspace | None]) -> None:
        self._layers = list(layers)
        self._subspaces = list(subspaces)

    def strengths(self, strength: float) -> list[float]:
        """See :class:`Repairer`."""
        return [0.0 if subspace is None else strength for subspace in self._subspaces]

    def apply(self, strengths: Sequence[float]) -> list[float]:
        """See :class:`Repairer`; gives the shares of directions that were taken out."""
        used: list[LayerSubspace | None] = []
        shares = []
        for subspace, strength in zip(self._subspaces, strengths, strict=True):
            # Rounding must not add a direction.
            rank = 0 if subspace is None else math.ceil(round(strength * subspace.rank, 9))
            used.append(None if subspace is None or rank == 0 else subspace.truncated(rank))
            shares.append(0.0 if subspace is None or subspace.rank == 0 else rank / subspace.rank)
        project(self._layers, used)
        return shares

    def cosines(self) -> list[float | None]:
        """See :class:`Repairer`."""
        return [None] * len(self._layers)


def update_curvatures(
    layers: Sequence[LoraFactors], subspaces: Sequence[LayerSubspace | None], projection: Projection = "hard"
) -> tuple[Tensor, Tensor]:
    """Damage and size of the critical part ``ΔW_A = U C UᵀΔW`` of every layer, float64 ``(layers,)`` each.

    Returns:
        ``d = ‖F^½ΔW_A‖² = s² tr(MᵀM K)``, ``M = Λ^½ C UᵀB``, ``K = A Aᵀ`` (docs/adapting.md, Penalties), and
        ``e = ‖ΔW_A‖²``, the same without ``Λ^½``; both zero where no subspace covers the layer.
    """
    damages, energies = [], []
    for layer, subspace in zip(layers, subspaces, strict=True):
        if subspace is None:
            damages.append(0.0)
            energies.append(0.0)
            continue
        A, B = layer.A.detach().double(), layer.B.detach().double()
        basis, eigenvalues = subspace.basis.to(B), subspace.eigenvalues.to(B).clamp_min(0)
        inside = soft_coefficients(eigenvalues, projection).to(B)[:, None] * (basis.mT @ B)
        # Energy of ΔW_A along every direction of the basis.
        along = layer.scaling**2 * ((inside @ (A @ A.mT)) * inside).sum(dim=1).clamp_min(0)
        damages.append(float((eigenvalues * along).sum()))
        energies.append(float(along.sum()))
    return torch.tensor(damages, dtype=torch.float64), torch.tensor(energies, dtype=torch.float64)


def fisher_strengths(damages: Tensor, energies: Tensor, strength: float) -> list[float]:
    """Strengths by layer from one number: strong where a unit of the update's energy does much damage.

    A repair of strength ``ρ_l`` takes ``ρ_l²e_l`` of squared update away from the task and leaves the damage
    ``(1 − ρ_l)²d_l``. Their weighted sum ``Σ ρ_l²e_l + μ Σ (1 − ρ_l)²d_l`` is least at ``ρ_l = μf_l/(1 + μf_l)`` with
    ``f_l = d_l/e_l``, the mean Fisher eigenvalue under the critical part of the update. With ``μ = κ/((1 − κ)f̄)`` and
    ``f̄ = Σd/Σe`` this is ``ρ_l = κf_l/((1 − κ)f̄ + κf_l)``: every layer rises with ``κ`` from none at 0 to all at 1, the
    average layer has ``ρ = κ``, and layers with equal ``f`` have equal strengths. It holds exactly for the hard
    projector; ranking by ``d_l`` alone would spend most on the layers that were merely trained most.

    Args:
        damages: ``d (layers,)``.
        energies: ``e (layers,)``; a layer with ``e = 0`` has nothing to repair and gets zero.
        strength: ``κ`` in ``[0, 1]``.
    """
    total = energies.sum()
    if strength == 0 or total == 0:
        return [0.0] * len(energies)
    live = energies > 0
    if strength == 1:
        return live.double().tolist()
    ratios = torch.where(live, damages / torch.where(live, energies, torch.ones_like(energies)), 0.0)
    mean = damages.sum() / total
    if mean == 0:
        return [0.0] * len(energies)
    return (strength * ratios / ((1 - strength) * mean + strength * ratios)).tolist()
