"""Gradients of the penalty with respect to the parts of the update, and from there to ``A`` and ``B``."""

from __future__ import annotations

import torch
from torch import Tensor

from loralign.guard.penalties.split import LayerStack, Parts


class Cotangents:
    """What the terms leave behind: sums of gradients with respect to each quantity of :class:`Parts`.

    Most terms see the factors only through the small matrices, where their gradients cost next to nothing; they meet
    the factors once, in :meth:`pull_back`. Symmetric matrices hold symmetric gradients.

    Attributes:
        gram: with respect to ``K``, ``(L, r, r)`` float64.
        aligned_gram: to ``K_A``.
        task_gram: to ``K_T``.
        cross_gram: to ``X = B_AᵀB_T``.
        coordinates: to ``Z``, where a term reads ``Z`` itself, ``(L, q, r)``.
        aligned: to ``B_A``, where a term reads it itself, ``(L, m, r)``.
        task: to ``B_T``, likewise.
        A: to ``A``, likewise, ``(L, r, n)``.
    """

    def __init__(self, parts: Parts) -> None:
        self.gram, self.aligned_gram, self.task_gram, self.cross_gram = (torch.zeros_like(parts.gram) for _ in range(4))
        self.coordinates = torch.zeros_like(parts.coordinates)
        self.aligned, self.task, self.A = (torch.zeros_like(one) for one in (parts.aligned, parts.task, parts.A))

    def pull_back(self, stack: LayerStack, parts: Parts) -> tuple[Tensor, Tensor]:
        """Gradients with respect to ``A (L, r, n)`` and ``B (L, m, r)``, in the working dtype.

        With ``B_A = P_A B`` and ``B_T = B − B_A``: ``∇_B = g_T + P_A (g_A − g_T) + U g_Z``. Spends this object.
        """
        small = parts.A.dtype
        toward_aligned = self.aligned.baddbmm_(parts.aligned, 2 * self.aligned_gram.to(small))
        toward_aligned.baddbmm_(parts.task, self.cross_gram.mT.to(small))
        toward_task = self.task.baddbmm_(parts.task, 2 * self.task_gram.to(small))
        toward_task.baddbmm_(parts.aligned, self.cross_gram.to(small))
        difference = toward_aligned.sub_(toward_task)
        inner = torch.addcmul(self.coordinates, stack.coefficients[..., None], stack.basis.mT @ difference)
        gradient_b = toward_task.baddbmm_(stack.basis, inner)
        gradient_a = self.A.baddbmm_((2 * self.gram).to(small), parts.A)
        return gradient_a, gradient_b
