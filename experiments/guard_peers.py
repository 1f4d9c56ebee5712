"""Simple peers of the guard: squared distance and divergence to the start."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from loralign.lora import LoraFactors, lora_layers
from loralign.training import GuardedSFTTrainer


class L2ToStart(TrainerCallback):
    """Adds ``λ‖ΔW‖²_F`` over all layers to the loss, as gradients that the backward pass adds to."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._layers: list[LoraFactors] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the layers once."""
        self._layers = lora_layers(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``∇_B = 2λs²·B A Aᵀ`` and ``∇_A = 2λs²·BᵀB A``."""
        for layer in self._layers:
            factor = 2 * self.weight * layer.scaling**2
            A, B = layer.A.detach(), layer.B.detach()
            for parameter, gradient in ((layer.B, B @ (A @ A.mT)), (layer.A, (B.mT @ B) @ A)):
                own = factor * gradient
                parameter.grad = own if parameter.grad is None else parameter.grad + own


class KlToStartTrainer(GuardedSFTTrainer):
    """Adds ``λ·KL(start‖now)`` on the task's own response tokens: the start is the adapter switched off."""

    def __init__(self, *args: Any, weight: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight = weight

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The task's loss and the divergence, from one more forward pass of each model."""
        loss = super().compute_loss(model, dict(inputs), *args, **kwargs)
        wanted = inputs["labels"][:, 1:] != -100
        plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        unwrapped = self.accelerator.unwrap_model(model)
        with torch.no_grad(), unwrapped.disable_adapter():
            start = unwrapped(**plain, use_cache=False).logits[:, :-1][wanted].float().log_softmax(-1)
        now = unwrapped(**plain, use_cache=False).logits[:, :-1][wanted].float().log_softmax(-1)
        return loss + self.weight * torch.nn.functional.kl_div(now, start, log_target=True, reduction="batchmean")
