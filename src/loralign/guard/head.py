"""A model's last hidden states, and the logits that the model would make of them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from loralign.errors import ModelError


class OutputHead:
    """The output embedding of a causal language model, fed with hidden states that were kept.

    The model's own forward makes the logits, over a single token and with the kept states handed to its output
    embedding, so whatever it does to logits afterwards (scaling, soft capping) is done here too. Where the first use
    shows that it does nothing, the output embedding is called alone. The same states give the same logits, bit by bit.

    Args:
        model: with or without PEFT, but not wrapped for parallel training.

    Raises:
        ModelError: the model has no output embedding, or an encoder.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None:
            raise ModelError(
                f"{type(model).__name__} has no output embedding to compute token probabilities with",
                place="model",
                fix="load it as a causal language model (AutoModelForCausalLM)",
            )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(
                f"{type(model).__name__} is an encoder with a decoder", place="model", fix="use a causal language model"
            )
        self.head: nn.Module = head
        self._bare: bool | None = None

    @property
    def device(self) -> torch.device:
        """Where the model takes its input."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def vocabulary(self) -> int:
        """Number of logits of a token."""
        return int(_weight(self.head).shape[0])

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The states ``(k, hidden)`` from which the model predicts what follows the tokens ``(rows, positions)``.

        Args:
            input_ids: ``(batch, length)``.
            attention_mask: ``(batch, length)``.
            rows: ``(k,)``.
            positions: ``(k,)``.

        Raises:
            ModelError: the model applies its output embedding several times in one forward, or never.
        """
        kept: list[Tensor] = []

        def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            states = arguments[0]
            # Prompt-learning adapters put virtual tokens before the real ones.
            offset = states.shape[1] - input_ids.shape[1]
            kept.append(states[rows.to(states.device), (positions + offset).to(states.device)])
            return (states[:1, :1], *arguments[1:])

        hook = self.head.register_forward_pre_hook(keep)
        try:
            self._forward(input_ids, attention_mask)
        finally:
            hook.remove()
        if len(kept) != 1:
            raise ModelError(
                f"{type(self.model).__name__} applies its output embedding {len(kept)} times in one forward",
                place="model",
                fix="use a causal language model with one output head",
            )
        return kept[0]

    def logits(self, states: Tensor, head: nn.Module | None = None) -> Tensor:
        """Logits ``(k, vocabulary)`` of states ``(k, hidden)``.

        Args:
            states: from :meth:`hidden`.
            head: output embedding to use instead of the model's own, from :meth:`copy_if_adaptable`.
        """
        states = states.to(_weight(self.head).device)
        # The model may have moved since the copy was made, such as from the CPU when a trainer took it.
        head = None if head is None else head.to(states.device)
        if self._bare:
            return self._apply(head or self.head, states)
        logits = self._replay(states, head)
        if self._bare is None:
            # The same product of the same shape is the same to the last bit, unless something came before or after it.
            self._bare = torch.equal(self._apply(head or self.head, states).to(logits.dtype), logits)
        return logits

    def copy_if_adaptable(self) -> nn.Module | None:
        """The output embedding as it is now, if it can change: where it carries an adapter or is trained itself.

        The copy shares the frozen weights with the original; ``None`` where there is nothing that could change.
        """
        base: list[nn.Parameter] = []
        wrapped = False
        for module in self.head.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                base += module.original_module.parameters()
            elif isinstance(module, BaseTunerLayer):
                base += module.get_base_layer().parameters()
            else:
                continue
            wrapped = True
        frozen = [p for p in (base if wrapped else self.head.parameters()) if not p.requires_grad]
        if len(frozen) == len(list(self.head.parameters())):
            return None
        # Hooks may hold anything, even the whole model, and have no business in a copy.
        hooks = [
            value
            for module in self.head.modules()
            for name, value in vars(module).items()
            if name.endswith("_hooks") and isinstance(value, dict)
        ]
        memo: dict[int, Any] = {id(parameter): parameter for parameter in frozen}
        return copy.deepcopy(self.head, memo | {id(value): OrderedDict() for value in hooks})

    def _replay(self, states: Tensor, head: nn.Module | None) -> Tensor:
        """The logits as the model's forward gives them, over one token whose hidden states are exchanged."""

        def exchange(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (states[None], *arguments[1:])

        def use_other(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            return output if head is None else self._apply(head, states)[None]

        hooks = (self.head.register_forward_pre_hook(exchange), self.head.register_forward_hook(use_other))
        try:
            token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            logits: Tensor = self._forward(token, torch.ones_like(token)).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return logits

    def _forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        device = self.device
        return self.model(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False, return_dict=True
        )

    @staticmethod
    def _apply(head: nn.Module, states: Tensor) -> Tensor:
        # Under autocast the states may come in another dtype than the head's; outside of it they must agree.
        dtype = _weight(head).dtype
        logits: Tensor = head(states.to(dtype) if dtype.is_floating_point else states)
        return logits


def _weight(head: Any) -> Tensor:
    weight: Tensor = head.weight
    return weight
