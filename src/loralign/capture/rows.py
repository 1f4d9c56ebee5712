"""How many rows the batch has that a model is working on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class BatchRows:
    """Reads the number of rows off every batch that the model is given for a forward pass with gradients.

    A layer that sees all tokens of a batch in one ``(rows · tokens, n)`` matrix, such as the feed-forward layers of OPT
    or the shared expert of Qwen2-MoE, does not tell by itself how many rows that were.

    Args:
        model: the model that is called; a call of a module inside it is not seen.

    Attributes:
        count: rows of the latest batch, or ``None`` before the first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.count: int | None = None
        self._handle = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def close(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _see(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        # By name first: the rows of other arguments, such as positions, need not be those of the batch.
        candidates = [named.get("input_ids"), named.get("inputs_embeds"), *arguments, *named.values()]
        self.count = next((one.shape[0] for one in candidates if isinstance(one, Tensor) and one.ndim > 1), None)
