"""Moving Adam's state with the basis of a refactored layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loralign.geometry.refactor import Refactored
from loralign.lora import LoraFactors

_FIRST, _SECOND, _MAXIMUM = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"


def move_moments(optimizer: torch.optim.Optimizer, layer: LoraFactors, change: Refactored) -> bool:
    """Carry first and second moments of ``A`` and ``B`` over to the new factors; returns whether there were any.

    Gradients move as ``∇_{A'} = Mᵀ ∇_A`` and ``∇_{B'} = ∇_B Tᵀ`` for ``B' = B M`` and ``A' = T A``, and first moments,
    being sums of gradients, move exactly so (with square invertible ``M`` this is ``T = M⁻¹``, docs/concepts.md).
    Second moments move through the squared mixing matrices, which leaves out the covariance between entries: an
    approximation. New directions start with a first moment of zero and, in place of a second moment of zero that would
    turn their first step into a jump, with the mean second moment of the kept ones, scaled to the new rows' size.
    """
    states = [_state(optimizer, factor) for factor in (layer.A, layer.B)]
    if any(state is None for state in states):
        return False
    for state, is_a in zip(states, (True, False), strict=True):
        assert state is not None  # noqa: S101 - narrows the type after the test above
        mixing = change.mix_b.mT if is_a else change.mix_a
        state[_FIRST].copy_(_moved(state[_FIRST], mixing, change, is_a=is_a, second=False))
        for name in (_SECOND, _MAXIMUM):
            if name in state:
                state[name].copy_(_moved(state[name], mixing.square(), change, is_a=is_a, second=True))
    return True


def reset_moments(optimizer: torch.optim.Optimizer, layer: LoraFactors) -> None:
    """Forget the optimiser's state of both factors."""
    for factor in (layer.A, layer.B):
        optimizer.state.pop(factor, None)


def _state(optimizer: torch.optim.Optimizer, factor: Tensor) -> dict[str, Any] | None:
    state = optimizer.state.get(factor)
    return state if state and _FIRST in state and _SECOND in state else None


def _moved(moment: Tensor, mixing: Tensor, change: Refactored, *, is_a: bool, second: bool) -> Tensor:
    """``mixing (q, r)`` applied along the rank axis, then the new directions' share appended."""
    along = moment.double() if is_a else moment.double().mT
    kept = mixing.to(along.device) @ along
    new = kept.new_zeros(along.shape[0] - change.kept, along.shape[1])
    if second and change.kept:
        new += kept.mean(dim=0)
        if not is_a and len(new):
            # Gradients of B' scale with the rows of A' they meet.
            norms = change.A.square().sum(dim=1)
            new *= (norms[change.kept :].mean() / norms[: change.kept].mean()).to(new.device)
    full = torch.cat([kept, new])
    return full if is_a else full.mT
