"""Per-sample inputs and output gradients of every LoRA layer from one ordinary backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loralign.capture.probe import Collect, LayerProbe
from loralign.errors import AdapterError
from loralign.lora import LoraFactors, lora_layers

Consume = Callable[[int, Tensor, Tensor], None]
_CollectOf = Callable[[int | None, Tensor, Tensor, Tensor], None]


class SampleCapture:
    """Hands the tokens of every layer to a consumer during backward, sample by sample.

    Samples do not mix inside a transformer, so if the loss is the SUM of the samples' own losses, the gradient of
    sample ``s`` alone with respect to the layer's full weight is ``G_s = g_sᵀ x_s (m, n)`` with the rows that belong to
    it (docs/adapting.md, Fisher subspace). Nothing is stored here: the consumer reduces what it is given.

    Layers that read one and the same tensor, such as the query, key and value projections of a block, are handed the
    same tensor object ``x`` in consecutive calls, so that a consumer can share what it computes from ``x`` alone.

    Args:
        model: a PEFT model with LoRA layers; they are found once, here.
        consume: called in backward with the number of the layer in :attr:`layers`, ``x (rows, tokens, n)`` and
            ``g (rows, tokens, m)``, the gradient at the layer's output ``h = W x + s·B A x`` (the factor ``s`` of the
            branch is divided out). Both are float32, or float64 where the adapter is. They must not be written to.

    Attributes:
        layers: the layers, in the model's own order.
        enabled: no probe is placed in forward passes begun while it is false.

    Raises:
        AdapterError: the model's adapter is not plain LoRA; or, from a forward pass, a layer's input does not keep the
            samples apart.
    """

    def __init__(self, model: nn.Module, consume: Consume) -> None:
        self.layers: list[LoraFactors] = lora_layers(model)
        self.enabled = True
        self._consume = consume
        self._group = 0
        self._previous: tuple[Callable[[], Tensor | None], int] | None = None
        self._latest: tuple[int, Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._probes: list[_GroupedProbe] = []
        for index, layer in enumerate(self.layers):
            dropouts = [m for m in model.get_submodule(layer.name).modules() if isinstance(m, nn.Dropout) and m.p > 0]
            self._handles.append(layer.base.register_forward_pre_hook(partial(self._see_input, index)))
            current = partial(self._current_group, dropouts)
            self._probes.append(_GroupedProbe(layer, partial(self._collect, index), lambda: self.enabled, current))

    def clear(self) -> None:
        """Let go of the input that is held for the next layer to share; for the end of a backward pass."""
        self._latest = None
        self._previous = None

    def close(self) -> None:
        """Remove every hook; the model is then as it was found."""
        for probe in self._probes:
            probe.remove()
        for handle in self._handles:
            handle.remove()
        self._probes.clear()
        self._handles.clear()
        self.clear()

    def _see_input(self, index: int, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Number the distinct inputs in the order of the forward pass.

        It is seen here because PEFT hands every branch a converted copy of its own.
        """
        if not (self.enabled and torch.is_grad_enabled()):
            return
        x: Tensor = arguments[0]
        if x.ndim < 3:
            raise AdapterError(
                f"the layer's input has shape {tuple(x.shape)}, which does not tell the samples of a batch apart",
                place=self.layers[index].name,
                fix="leave modules that see tokens of all samples together, such as experts, out of target_modules",
            )
        if self._previous is None or self._previous[0]() is not x or self._previous[1] != x._version:
            self._group += 1
        self._previous = (weakref.ref(x), x._version)

    def _current_group(self, dropouts: list[nn.Dropout]) -> int | None:
        # Every branch draws a dropout mask of its own.
        return None if any(dropout.training for dropout in dropouts) else self._group

    def _collect(self, index: int, group: int | None, x: Tensor, inner: Tensor, gradient: Tensor) -> None:
        dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        if group is None or self._latest is None or self._latest[0] != group:
            # Layers may have several token dimensions; a sample is always the first.
            self._latest = (-1 if group is None else group, x.to(dtype).flatten(1, -2))
        g = gradient.to(dtype).flatten(1, -2)
        scaling = self.layers[index].scaling
        self._consume(index, self._latest[1], g if scaling == 1 else g / scaling)


class _GroupedProbe(LayerProbe):
    """A probe that remembers, for every call of its layer, which input the call shared with others."""

    def __init__(
        self,
        layer: LoraFactors,
        collect: _CollectOf,
        enabled: Callable[[], bool],
        group: Callable[[], int | None],
    ) -> None:
        super().__init__(layer, partial(collect, None), enabled)
        self._collect_of = collect
        self._current = group

    def _place(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Bound now, since a layer may be called again before the backward pass comes to this call.
        self._collect: Collect = partial(self._collect_of, self._current())
        return super()._place(module, arguments, output)
