"""A model's logits at chosen positions only.

In a small model with a large vocabulary the output embedding is a good part of the whole cost, and its result the
largest tensor; prompts and padding need none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from loralign.data.batching import Batch
from loralign.errors import ModelError

LogitRows = Callable[[slice], torch.Tensor]
"""Logits ``(rows, vocabulary)`` of a slice of a batch's rows."""


class RowLogits:
    """Logits of ``model`` at the rows of a batch, the same as ``model(**inputs).logits`` has there.

    The model's own forward runs, with only the wanted hidden states handed to its output embedding, so whatever the
    model does to its logits afterwards (scaling, soft capping) is done here as well. Where the first batch shows that
    it does nothing, the following ones apply the output embedding to a few rows at a time instead, and the logits of a
    batch are never all in memory. An output embedding that carries an adapter is not deferred in this way, because by
    then the adapter may have been switched.

    Args:
        model: causal language model of transformers, with or without PEFT.

    Raises:
        ModelError: the model has no output embedding.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if self.head is None:
            raise ModelError(
                f"{type(model).__name__} has no output embedding to compute token probabilities with",
                place="model",
                fix="load it as a causal language model (AutoModelForCausalLM)",
            )
        tuned = any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in self.head.modules())
        self._bare: bool | None = False if tuned else None

    @property
    def device(self) -> torch.device:
        """Where the model takes its input."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def vocabulary(self) -> int:
        """Number of logits in a row."""
        return int(self.head.weight.shape[0])

    def __call__(self, batch: Batch) -> LogitRows:
        """Run the model on ``batch`` once.

        Raises:
            ModelError: the model applies its output embedding several times in one forward.
        """
        batch = batch.to(self.device)
        hidden: list[torch.Tensor] = []

        def keep_rows(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            states = args[0]
            # Prompt-learning adapters put virtual tokens before the real ones.
            offset = states.shape[1] - batch.input_ids.shape[1]
            hidden.append(states[batch.sequence.to(states.device), (batch.position + offset).to(states.device)])
            return (hidden[-1][None, : 1 if self._bare else None], *args[1:])

        hook = self.head.register_forward_pre_hook(keep_rows)
        try:
            output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        finally:
            hook.remove()
        if len(hidden) != 1:
            raise ModelError(
                f"{type(self.model).__name__} applies its output embedding {len(hidden)} times in one forward",
                place="model",
                fix="use a causal language model with one output head",
            )
        rows = hidden[0]
        if self._bare:
            head = self.head
            return lambda part: head(rows[part])
        logits = output.logits[0]
        if self._bare is None:
            # The same product of the same shape is the same to the last bit, unless something came after it.
            self._bare = torch.equal(self.head(rows[None])[0].to(logits.dtype), logits)
        return lambda part: logits[part]
