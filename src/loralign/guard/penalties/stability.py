"""The task term ``‖H^½ΔW_T‖²_F``: how far the task's own part moves, in the metric of the task's curvature."""

from __future__ import annotations

from torch import Tensor

from loralign.guard.penalties.cotangents import Cotangents
from loralign.guard.penalties.split import LayerStack, Parts


def stability_term(stack: LayerStack, parts: Parts, weight: float, cotangents: Cotangents | None) -> Tensor:
    """``‖H^½ΔW_T‖² = s² tr(B_Tᵀ S_out B_T · A S_in Aᵀ)``, ``(L,)`` float64 (docs/adapting.md, Penalties).

    Without curvature both ``S`` are the identity; the diagonal form has a diagonal ``S_out`` and ``S_in = I``; the
    Kronecker form has both. Of a layer without a subspace the whole update is the task's, ``ΔW_T = ΔW``.

    Args:
        stack: the layers.
        parts: of their updates.
        weight: of the gradient.
        cotangents: where ``weight`` times the gradient is added.
    """
    squared = stack.scaling[:, None, None].square()
    wanted = cotangents is not None and weight > 0
    if stack.curvature is None:
        if cotangents is not None and wanted:
            cotangents.task_gram += weight * squared * parts.gram
            cotangents.gram += weight * squared * parts.gram_task
        return (squared * parts.gram_task * parts.gram).sum(dim=(1, 2))
    curved = stack.curvature.output.apply(parts.task)
    inner = (parts.task.mT @ curved).double()
    side, outer = stack.curvature.input, parts.gram
    if side is not None:
        curved_rows = side.apply(parts.A.mT).mT
        outer = (curved_rows @ parts.A.mT).double()
    if cotangents is not None and wanted:
        small = parts.A.dtype
        cotangents.task.baddbmm_(curved, (2 * weight * squared * outer).to(small))
        if side is None:
            cotangents.gram += weight * squared * inner
        else:
            cotangents.A.baddbmm_((2 * weight * squared * inner).to(small), curved_rows)
    return (squared * inner * outer).sum(dim=(1, 2))
