"""Losses of prepared responses, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loralign.data.completions import Completion, completion_batches
from loralign.guard.modes import evaluating
from loralign.guard.responses import response_losses


@torch.no_grad()
def completion_losses(
    model: Any, completions: Sequence[Completion], *, batch_size: int = 16, pad_id: int = 0
) -> torch.Tensor:
    """Negative log-likelihood per response token of every sample, in nats, ``(samples,)`` float64.

    Args:
        model: a causal language model, with an adapter or without; left as it was found.
        completions: tokenised prompts with responses.
        batch_size: samples per forward pass.
        pad_id: the padding token.
    """
    device = next(model.parameters()).device
    losses = torch.zeros(len(completions), dtype=torch.float64)
    with evaluating(model):
        positions = getattr(model.config, "max_position_embeddings", None)
        for batch in completion_batches(completions, batch_size, pad_id, positions):
            losses[batch.rows] = response_losses(model, batch.to(device)).double().cpu()
    return losses
