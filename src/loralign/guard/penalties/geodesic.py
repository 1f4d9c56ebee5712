"""The geodesic term: the angle between the two parts of the update, in the paper's form and in one that is alive."""

from __future__ import annotations

import torch
from torch import Tensor

from loralign.guard.penalties.cotangents import Cotangents
from loralign.guard.penalties.options import Geodesic
from loralign.guard.penalties.split import Parts


def geodesic_term(parts: Parts, form: Geodesic, weight: float, cotangents: Cotangents | None) -> Tensor:
    """``E_geo (L,)`` float64, in [0, 1]; scaling ``ΔW`` changes nothing (docs/adapting.md, Penalties).

    - ``"row"``: ``‖ΔW_A ΔW_Tᵀ‖²/(‖ΔW_A‖²‖ΔW_T‖²) = tr(K_A K K_T K)/(tr(K_A K) tr(K_T K))``, zero exactly when the two
      parts read disjoint input directions.
    - ``"frobenius"``: ``(⟨ΔW_A, ΔW_T⟩/(‖ΔW_A‖‖ΔW_T‖))²``, identically zero under the hard projection.

    Where one of the two parts vanishes, its norm being below 16 machine epsilons of that of ``ΔW``, the angle is not
    defined, and value and gradient are 0: so at ``B = 0``, and after a projection.

    Args:
        parts: of the updates.
        form: one of the above.
        weight: of the gradient.
        cotangents: where ``weight`` times the gradient is added.
    """
    K, K_A, K_T, X = parts.gram, parts.gram_aligned, parts.gram_task, parts.gram_cross
    aligned, task, cross, alive = _inner_products(parts)
    denominator = aligned * task
    if form == "row":
        aligned_rows, task_rows = K @ K_A @ K, K @ K_T @ K
        numerator = (K_A * task_rows).sum(dim=(1, 2))
    else:
        numerator = cross.square()
    value = torch.where(alive, numerator / denominator, torch.zeros_like(cross))
    if cotangents is None or weight == 0:
        return value

    def factor(each: Tensor) -> Tensor:
        return torch.where(alive, weight * each, torch.zeros_like(each))[:, None, None]

    # dE = dN/(at) − E (da/a + dt/t), N the numerator.
    over = factor(1 / denominator)
    from_aligned, from_task = factor(value / aligned), factor(value / task)
    cotangents.aligned_gram -= from_aligned * K
    cotangents.task_gram -= from_task * K
    cotangents.gram -= from_aligned * K_A + from_task * K_T
    if form == "row":
        mixed = K_A @ K @ K_T
        cotangents.aligned_gram += over * task_rows
        cotangents.task_gram += over * aligned_rows
        cotangents.gram += over * (mixed + mixed.mT)
    else:
        twice = 2 * cross[:, None, None] * over
        cotangents.cross_gram += twice * K
        cotangents.gram += twice * (X + X.mT) / 2
    return value


def cosines(parts: Parts) -> Tensor:
    """``cos∠(ΔW_A, ΔW_T) = ⟨ΔW_A, ΔW_T⟩/(‖ΔW_A‖‖ΔW_T‖)``, ``(L,)`` float64; 0 where a part vanishes."""
    aligned, task, cross, alive = _inner_products(parts)
    return torch.where(alive, cross / (aligned * task).sqrt(), torch.zeros_like(cross))


def _inner_products(parts: Parts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``‖ΔW_A‖²``, ``‖ΔW_T‖²`` (1 where a part vanishes), ``⟨ΔW_A, ΔW_T⟩``, all up to ``s²``; where none vanishes."""
    aligned, task, cross = (
        (one * parts.gram).sum(dim=(1, 2)) for one in (parts.gram_aligned, parts.gram_task, parts.gram_cross)
    )
    floor = (16 * torch.finfo(parts.A.dtype).eps) ** 2 * (aligned + task + 2 * cross)
    alive = (aligned > floor) & (task > floor)
    one = torch.ones_like(aligned)
    return torch.where(alive, aligned, one), torch.where(alive, task, one), cross, alive
