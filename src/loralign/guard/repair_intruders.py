"""PEFT's intruder reduction as a method of repair."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

from loralign.errors import AdapterError, ConfigError
from loralign.guard.peers import PeerOptions
from loralign.lora import LoraFactors


class IntruderRepairer:
    """Shrink intruder dimensions (Shuttleworth et al., arXiv:2410.21228) through ``peft``'s own function.

    ``reduce_intruder_dimension`` finds among the leading left singular vectors of ``W + ΔW`` those that resemble none
    of ``W``, takes a share of their components ``σ u vᵀ`` away and brings what remains of ``ΔW`` back to the adapter's
    rank by a truncated SVD. It writes both factors of a second adapter; they are copied over the first, which stays the
    only one. The strength ``ρ`` is the share taken away, ``1 −`` PEFT's ``mitigation_lambda`` (its documentation has
    that the other way round), so PEFT's default of 0.75 is ``ρ = 0.25``.

    Every application takes three SVDs of dense ``(m, n)`` matrices per layer, in float32. On a 16-bit base PEFT rounds
    the new factors to the base's dtype.

    Args:
        model: the PEFT model.
        layers: all layers of its adapter.
        options: what counts as an intruder.

    Raises:
        AdapterError: no PEFT model with LoRA; a base weight that is quantised or transposed (``Conv1D``), which PEFT's
            function mistakes for a plain one; or further adapters beside the one to repair.
    """

    default_strength = 0.25
    by_layer = False

    def __init__(self, model: nn.Module, layers: Sequence[LoraFactors], options: PeerOptions) -> None:
        self._model: Any = model
        self._layers = list(layers)
        self._options = options
        self._adapter = _only_adapter(model, layers)

    def strengths(self, strength: float) -> list[float]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        return [strength] * len(self._layers)

    @torch.no_grad()
    def apply(self, strengths: Sequence[float]) -> list[float]:
        """See :class:`~loralign.guard.repair_methods.Repairer`; layers without intruders have strength zero."""
        if len(set(strengths)) > 1:
            raise ConfigError("the intruder method has one strength for all layers", fix="give one strength")
        modules = [self._model.get_submodule(layer.name) for layer in self._layers]
        touched = []
        with self._second_adapter() as name:
            reduce_intruder_dimension(
                self._model,
                old_adapter_name=self._adapter,
                new_adapter_name=name,
                top_k=self._options.top_k,
                threshold_epsilon=self._options.epsilon,
                mitigation_lambda=1 - strengths[0],
                logging_sink=None,
            )
            for layer, module in zip(self._layers, modules, strict=True):
                # On a 16-bit base they come in its dtype, which tensors can only be compared in if they share it.
                A, B = module.lora_A[name].weight.detach().to(layer.A), module.lora_B[name].weight.detach().to(layer.B)
                # PEFT copies the factors of a layer without intruders as they are.
                touched.append(not (torch.equal(A, layer.A) and torch.equal(B, layer.B)))
                layer.A.copy_(A)
                layer.B.copy_(B)
        return [strength if hit else 0.0 for strength, hit in zip(strengths, touched, strict=True)]

    def cosines(self) -> list[float | None]:
        """See :class:`~loralign.guard.repair_methods.Repairer`."""
        return [None] * len(self._layers)

    @contextmanager
    def _second_adapter(self) -> Iterator[str]:
        """The name of an adapter for PEFT's function to make; afterwards the model is as it was."""
        name = f"intruders_{uuid.uuid4().hex}"
        config = self._model.peft_config[self._adapter]
        kind, trained = config.init_lora_weights, [p for p in self._model.parameters() if p.requires_grad]
        # Starts such as PiSSA would rewrite the base weights on their way.
        config.init_lora_weights = True
        try:
            with torch.random.fork_rng(devices=[]):
                yield name
        finally:
            config.init_lora_weights = kind
            self._model.set_adapter(self._adapter)
            if name in self._model.peft_config:
                self._model.delete_adapter(name)
            self._model.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)


def _only_adapter(model: nn.Module, layers: Sequence[LoraFactors]) -> str:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or getattr(model, "peft_type", None) != "LORA":
        raise AdapterError("the intruder method needs a PEFT model with LoRA", fix="load it with PeftModel")
    if len(configs) > 1 or sum(isinstance(module, LoraLayer) for module in model.modules()) != len(layers):
        raise AdapterError(
            f"the model has other adapters beside the one to repair: {', '.join(configs)}",
            fix="load that one alone",
        )
    for layer in layers:
        weight = getattr(layer.base, "weight", None)
        if not isinstance(layer.base, nn.Linear) or weight is None or tuple(weight.shape) != layer.shape:
            raise AdapterError(
                f"the intruder method cannot work on {type(layer.base).__name__}",
                place=layer.name,
                fix="load the base unquantised, or use another method",
            )
    return str(next(iter(configs)))
