"""Walking the LoRA layers of a PEFT model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import Tensor, nn

from loralign.errors import AdapterError


@dataclass(frozen=True)
class LoraFactors:
    """One LoRA layer ``h = W x + s·B A x`` of the active adapter, ``W`` of shape ``(m, n)``.

    Attributes:
        name: the layer's path inside the model, as in ``model.named_modules()``.
        down: the linear module that holds ``A``.
        up: the linear module that holds ``B``.
        scaling: ``s``: ``alpha / r``, or ``alpha / sqrt(r)`` under rsLoRA.
        base: the module that holds the frozen ``W``; :func:`~loralign.lora.base_weight_rows` reads it.
    """

    name: str
    down: nn.Linear
    up: nn.Linear
    scaling: float
    base: nn.Module

    @property
    def A(self) -> Tensor:  # noqa: N802 - the field's name of the factor
        """The down projection, ``(r, n)``, as the live parameter."""
        return self.down.weight

    @property
    def B(self) -> Tensor:  # noqa: N802 - the field's name of the factor
        """The up projection, ``(m, r)``, as the live parameter."""
        return self.up.weight

    @property
    def rank(self) -> int:
        """The LoRA rank ``r``."""
        return self.down.weight.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``: outputs and inputs of the layer."""
        return self.up.weight.shape[0], self.down.weight.shape[1]


def working_dtype(factor: Tensor) -> torch.dtype:
    """What is computed in: float64 for a factor in float64, float32 for all others."""
    return torch.float64 if factor.dtype == torch.float64 else torch.float32


def canonical_name(name: str) -> str:
    """The layer's path inside the base model: PEFT's own prefix is taken off once, where there is one.

    >>> canonical_name("base_model.model.model.layers.0.self_attn.q_proj")
    'model.layers.0.self_attn.q_proj'
    """
    return name.removeprefix("base_model.model.")


def lora_layers(model: nn.Module) -> list[LoraFactors]:
    """List every LoRA layer of the model's active adapter, in the model's own order.

    Works for adapters on ``Linear``, on the transposed ``Conv1D`` of GPT-2 and on quantised bases, since only the two
    factors are read here and never the base weight.

    Raises:
        AdapterError: the model has no LoRA layer; several adapters are active at once; an adapter is merged into its
            base; or a layer is of a kind whose update is not ``s·B A`` (DoRA and the other variants, embeddings,
            convolutions, torch's ``MultiheadAttention``, raw parameters: those of experts and routers are what PEFT
            makes of ``target_modules="all-linear"`` on a mixture-of-experts model).
    """
    layers = list(_walk(model))
    if not layers:
        raise AdapterError(
            "the model has no LoRA layers", fix="wrap it with peft.get_peft_model(model, LoraConfig(...))"
        )
    return layers


def _walk(model: nn.Module) -> Iterator[LoraFactors]:
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        present = {*module.lora_A.keys(), *module.lora_embedding_A.keys()}
        active = [adapter for adapter in module.active_adapters if adapter in present]
        if not active:
            continue
        if len(active) > 1:
            raise AdapterError(
                f"several adapters are active at once: {', '.join(active)}",
                place=name,
                fix="call model.set_adapter(one)",
            )
        if module.merged:
            raise AdapterError(
                "the adapter is merged into its base", place=name, fix="call model.unmerge_adapter() first"
            )
        adapter = active[0]
        down, up = _linear_factors(name, module, adapter)
        yield LoraFactors(name, down, up, scaling=float(module.scaling[adapter]), base=module.get_base_layer())


def _linear_factors(name: str, module: LoraLayer, adapter: str) -> tuple[nn.Linear, nn.Linear]:
    if isinstance(module, ParamWrapper):
        # It has an A and a B, too, but perhaps those of all experts stacked, and its forward pass calls neither.
        raise AdapterError(
            f"LoRA on the raw parameter {module.parameter_name!r} of {type(module.get_base_layer()).__name__}, such as "
            "experts and routers have, is not supported",
            place=name,
            fix="name target_modules that are linear modules, such as the attention's q_proj, k_proj, v_proj, o_proj",
        )
    if isinstance(module, MultiheadAttention):
        raise AdapterError(
            "LoRA on torch's MultiheadAttention is not supported: its forward pass merges the adapter into the weight",
            place=name,
            fix="target linear modules only",
        )
    if adapter in module.lora_variant:
        kind = type(module.lora_variant[adapter]).__name__
        raise AdapterError(f"{kind} is not a plain LoRA layer", place=name, fix="use a LoraConfig without variants")
    down = dict(module.lora_A.items()).get(adapter)
    up = dict(module.lora_B.items()).get(adapter)
    base = module.get_base_layer()
    if not (isinstance(down, nn.Linear) and isinstance(up, nn.Linear)) or isinstance(base, nn.Embedding):
        raise AdapterError(
            f"LoRA on {type(base).__name__} is not supported", place=name, fix="target linear modules only"
        )
    return down, up
