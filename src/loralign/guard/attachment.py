"""Making a model ready to be measured, and leaving it exactly as it was found."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from loralign.errors import AdapterError, ModelError


@contextlib.contextmanager
def measurable(model: nn.Module, target_modules: str | Sequence[str]) -> Iterator[None]:
    """Let backward reach the output of every LoRA layer and nothing else, for the length of the block.

    All parameters are frozen, so that no ``.grad`` is touched and none is computed; instead the output of the input
    embedding asks for a gradient, which every layer then lies under. Dropout is off. A model without an adapter gets
    a temporary one of rank 1 that adds zero. Afterwards modules, flags and hooks are as before.

    Args:
        model: a causal language model of transformers, with or without LoRA.
        target_modules: the modules of the temporary adapter, as in ``peft.LoraConfig``.

    Raises:
        ModelError: the model is not a causal language model of transformers.
        AdapterError: there are no modules of the given names.
    """
    _check_model(model)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    plain = not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    hook = _input_embedding(model).register_forward_hook(_ask_for_gradient)
    try:
        if plain:
            _attach(model, target_modules)
        model.eval()
        _keep_checkpointing(model, {module for module, on in training if on})
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        yield
    finally:
        hook.remove()
        if plain:
            _detach(model)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, on in training:
            module.training = on


def _input_embedding(model: Any) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    return embedding


def _check_model(model: Any) -> None:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is not a causal language model",
            place="model",
            fix="load it with AutoModelForCausalLM",
        )


def _attach(model: Any, target_modules: str | Sequence[str]) -> None:
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(r=1, lora_alpha=1, target_modules=targets, fan_in_fan_out=transposed)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT corrects fan_in_fan_out by itself where a model has modules of both kinds.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            _detach(model)
            raise AdapterError(
                f"no temporary adapter fits the model: {str(error).splitlines()[0]}",
                place=f"target_modules {targets!r}",
                fix="name linear modules of the model, or use 'all-linear'",
            ) from error
    for module in model.modules():
        if isinstance(module, LoraLayer):
            weight = getattr(module.get_base_layer(), "weight", None)
            if weight is not None and weight.is_floating_point():
                # It adds zero, so it need not compute in float32 as an adapter does that learns.
                module.lora_A.to(weight.dtype)
                module.lora_B.to(weight.dtype)


def _detach(model: Any) -> None:
    for parent in list(model.modules()):
        if isinstance(parent, LoraLayer):
            # Wrappers of several parameters of one module are nested; the outermost gives way to what all of them wrap.
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, child.get_base_layer())
    vars(model).pop("peft_config", None)


def _keep_checkpointing(model: nn.Module, training: set[nn.Module]) -> None:
    """Recompute activations where the model did so before: its blocks look for that at their own training flag.

    The modules inside stay in evaluation mode. A block with dropout of its own keeps all its activations instead.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing and module in training:
            rates = [value for key, value in vars(module).items() if "drop" in key and isinstance(value, float)]
            module.training = not any(rates)


def _ask_for_gradient(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)
