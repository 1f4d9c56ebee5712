"""The identity autograd Function that sees a LoRA layer's input and output gradient together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loralign.lora import LoraFactors

Collect = Callable[[Tensor, Tensor, Tensor], None]


class _Probe(torch.autograd.Function):
    """Identity that hands ``(x, A x, gradient)`` to a collector in backward.

    ``x`` and ``A x`` are the very tensors that the two projections save for their own gradients, so nothing new is kept
    alive; as saved tensors they are dropped and recomputed under gradient checkpointing and follow offloading hooks.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, inner: Tensor, collect: Collect) -> Tensor:
        ctx.save_for_backward(x, inner)
        ctx.collect = collect
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        x, inner = ctx.saved_tensors
        ctx.collect(x.detach(), inner.detach(), gradients[0].detach())
        return gradients[0], None, None, None


def owners(callables: Iterable[Callable[..., Any]]) -> Iterator[Any]:
    """The objects whose methods these are, such as a module's hooks; partial applications of methods count, too."""
    for one in list(callables):
        method = one.func if isinstance(one, partial) else one
        yield getattr(method, "__self__", None)


class LayerProbe:
    """Hooks that place a probe on one LoRA layer.

    The probe stands on the output of the LoRA branch, ``y = B A x``: there ``∂L/∂y = s·g`` with ``g`` the gradient at
    the layer's output ``h = W x + s·y``, so it sees the same gradient as a probe on ``h`` would, already in the
    adapter's dtype, and it is bypassed by itself whenever the adapter is disabled.

    Args:
        layer: the layer to watch.
        collect: called in backward with ``x (…, n)``, ``A x (…, r)`` and ``s·g (…, m)``.
        enabled: asked in every forward; the probe is not placed where it answers false.
    """

    def __init__(self, layer: LoraFactors, collect: Collect, enabled: Callable[[], bool]) -> None:
        self._collect = collect
        self._enabled = enabled
        self._input: Tensor | None = None
        self._handles: list[RemovableHandle] = [
            layer.down.register_forward_pre_hook(self._keep_input),
            layer.up.register_forward_hook(self._place),
        ]

    def _keep_input(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._input = arguments[0] if self._enabled() and torch.is_grad_enabled() else None

    def _place(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, self._input = self._input, None
        if x is None or not output.requires_grad:
            return output
        probed: Tensor = _Probe.apply(output, x, arguments[0], self._collect)  # type: ignore[no-untyped-call]
        return probed

    @property
    def owner(self) -> Any:
        """The object whose method collects."""
        return next(owners([self._collect]))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._input = None
