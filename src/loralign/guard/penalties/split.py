"""The two parts of the update, ``ΔW_A = P_A ΔW`` and ``ΔW_T = ΔW − ΔW_A``, for layers of one shape at once.

A model has hundreds of LoRA layers in a handful of shapes. Layers of one shape are stacked, so that a term is a few
batched products and not hundreds of small ones. Nothing here is larger than the factors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.guard.layer_subspace import LayerSubspace, soft_coefficients
from loralign.guard.penalties.curvature_stack import CurvatureStack
from loralign.guard.penalties.options import PenaltyOptions
from loralign.guard.task_curvature import TaskCurvature
from loralign.lora import LoraFactors
from loralign.lora.layers import working_dtype

# Entries of A and B that are stacked at once: bounds what a stack's working memory adds, about ten times this. What one
# stack computes with fits a CPU's cache; a GPU wants few stacks, since each costs some sixty kernels whatever its size.
_STACKED = {"cpu": 2**18}
_LARGE_STACK = 2**23


@dataclass
class LayerStack:
    """Some layers of one shape ``(m, n)``, one rank ``r`` and one device.

    Attributes:
        layers: the ``L`` layers.
        indices: where they stand in the caller's order.
        basis: ``U (L, m, q)``, padded with zero columns to the largest rank among them; zero for a layer without a
            subspace, whose ``P_A`` is 0.
        coefficients: ``c (L, q)`` of ``P_A = U diag(c) Uᵀ``, zero where padded.
        eigenvalues: ``λ (L, q)``, normalised, zero where padded.
        scaling: ``s (L,)`` float64.
        covered: whether a layer has a subspace at all.
        curvature: ``H`` of each layer, or ``None`` for the identity.
    """

    layers: list[LoraFactors]
    indices: list[int]
    covered: list[bool]
    basis: Tensor
    coefficients: Tensor
    eigenvalues: Tensor
    scaling: Tensor
    curvature: CurvatureStack | None

    def follow(self) -> None:
        """Move to the device and the precision that the factors now have."""
        device, dtype = self.layers[0].B.device, working_dtype(self.layers[0].B)
        if self.basis.device == device and self.basis.dtype == dtype:
            return
        self.basis, self.coefficients, self.eigenvalues = (
            one.to(device, dtype) for one in (self.basis, self.coefficients, self.eigenvalues)
        )
        self.scaling = self.scaling.to(device)
        if self.curvature is not None:
            self.curvature = self.curvature.to(device, dtype)

    def energies(self, parts: Parts) -> Tensor:
        """``‖ΔW_A‖²`` and ``‖ΔW_T‖²`` under the hard projector, ``(L, 2)`` float64."""
        inside = (parts.coordinates.mT @ parts.coordinates).double()
        whole = parts.gram_aligned + parts.gram_task + parts.gram_cross + parts.gram_cross.mT
        squared = self.scaling.square()
        energy, total = (squared * (one * parts.gram).sum(dim=(1, 2)) for one in (inside, whole))
        return torch.stack([energy, (total - energy).clamp_min(0)], dim=1)

    def parts(self) -> Parts:
        """Split the layers' updates as they are now."""
        A = torch.stack([layer.A.detach().to(self.basis) for layer in self.layers])
        B = torch.stack([layer.B.detach().to(self.basis) for layer in self.layers])
        coordinates = self.basis.mT @ B
        aligned = self.basis @ (self.coefficients[..., None] * coordinates)
        task = B.sub_(aligned)
        return Parts(
            A=A,
            aligned=aligned,
            task=task,
            coordinates=coordinates,
            gram=(A @ A.mT).double(),
            gram_aligned=(aligned.mT @ aligned).double(),
            gram_task=(task.mT @ task).double(),
            gram_cross=(aligned.mT @ task).double(),
        )


@dataclass(frozen=True)
class Parts:
    """``ΔW_A = s·B_A A`` and ``ΔW_T = s·B_T A`` of a stack, in factored form; the small matrices are float64.

    Attributes:
        A: ``(L, r, n)``.
        aligned: ``B_A = P_A B``, ``(L, m, r)``.
        task: ``B_T = B − B_A``, ``(L, m, r)``.
        coordinates: ``Z = UᵀB``, ``(L, q, r)``.
        gram: ``K = A Aᵀ``, ``(L, r, r)``.
        gram_aligned: ``K_A = B_AᵀB_A``.
        gram_task: ``K_T = B_TᵀB_T``.
        gram_cross: ``X = B_AᵀB_T``.
    """

    A: Tensor
    aligned: Tensor
    task: Tensor
    coordinates: Tensor
    gram: Tensor
    gram_aligned: Tensor
    gram_task: Tensor
    gram_cross: Tensor


def stack_layers(
    layers: Sequence[LoraFactors],
    subspaces: Sequence[LayerSubspace | None],
    curvature: Sequence[TaskCurvature | None],
    scale: float,
    options: PenaltyOptions,
) -> list[LayerStack]:
    """Group layers by shape, rank and device, in stacks of bounded size.

    Args:
        layers: in the caller's order.
        subspaces: one for each layer, or ``None`` for ``P_A = 0``.
        curvature: ``H`` for each layer, ``None`` for the identity.
        scale: what eigenvalues are divided by.
        options: the projection, and the form of the curvature.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, layer in enumerate(layers):
        groups[(*layer.shape, layer.rank, layer.B.device, working_dtype(layer.B))].append(index)
    stacks = []
    for members in groups.values():
        first = layers[members[0]]
        limit = _STACKED.get(first.B.device.type, _LARGE_STACK)
        size = max(1, limit // (sum(first.shape) * first.rank))
        for start in range(0, len(members), size):
            stacks.append(_stack(members[start : start + size], layers, subspaces, curvature, scale, options))
    return stacks


def _stack(
    indices: list[int],
    layers: Sequence[LoraFactors],
    subspaces: Sequence[LayerSubspace | None],
    curvature: Sequence[TaskCurvature | None],
    scale: float,
    options: PenaltyOptions,
) -> LayerStack:
    own = [layers[index] for index in indices]
    dtype, height = working_dtype(own[0].B), own[0].shape[0]
    spaces = [subspaces[index] for index in indices]
    rank = max((space.basis.shape[1] for space in spaces if space is not None), default=0)
    basis = torch.zeros(len(own), height, rank, dtype=dtype)
    coefficients, eigenvalues = (torch.zeros(len(own), rank, dtype=dtype) for _ in range(2))
    for row, space in enumerate(spaces):
        if space is not None:
            count = space.basis.shape[1]
            basis[row, :, :count] = space.basis
            coefficients[row, :count] = soft_coefficients(space.eigenvalues.double(), options.projection)
            eigenvalues[row, :count] = space.eigenvalues.double() / scale
    stack = LayerStack(
        layers=own,
        indices=indices,
        covered=[space is not None for space in spaces],
        basis=basis,
        coefficients=coefficients,
        eigenvalues=eigenvalues,
        scaling=torch.tensor([layer.scaling for layer in own], dtype=torch.float64),
        curvature=CurvatureStack.of(
            [curvature[index] for index in indices], own[0].shape, options.task_curvature, dtype
        ),
    )
    stack.follow()
    return stack
