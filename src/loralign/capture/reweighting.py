"""Weighting every objective's gradient on the LoRA factors, whatever the loss was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loralign.capture.labels import BatchLabels
from loralign.capture.probe import owners
from loralign.capture.rows import BatchRows
from loralign.errors import ConfigError
from loralign.lora import LoraFactors, lora_layers

RowWeights = Callable[[Tensor], Tensor | None]


class _WeightedBranch(torch.autograd.Function):
    """The LoRA branch ``y = B A x`` whose factors' gradients are ``Σ_b w_b ∂ℓ_b`` while ``∂ℓ/∂x`` stays unweighted.

    The branch has already been computed; only its backward is replaced. All weights meet tensors of width ``r``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        inner: Tensor,
        output: Tensor,
        row_weights: RowWeights,
    ) -> Tensor:
        ctx.save_for_backward(x, A, B, inner)
        ctx.row_weights = row_weights
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, inner = ctx.saved_tensors
        needs_x, _, _, needs_bias, *_ = ctx.needs_input_grad
        gradient = gradients[0]
        # Under autocast the gradient comes in the lower precision that the forward products had.
        work = gradient.dtype
        on_inner = gradient @ B.to(work)
        grad_x = (on_inner @ A.to(work)).to(x.dtype) if needs_x else None
        spread = ctx.row_weights(x)
        if spread is not None:
            spread = spread.to(work).view(-1, *[1] * (x.ndim - 1))
            on_inner, inner = on_inner * spread, inner.to(work) * spread
        grad_a = on_inner.flatten(0, -2).mT @ x.to(work).flatten(0, -2)
        grad_b = gradient.flatten(0, -2).mT @ inner.to(work).flatten(0, -2)
        grad_bias = None
        if needs_bias:
            weighted = gradient if spread is None else gradient * spread
            grad_bias = weighted.flatten(0, -2).sum(dim=0).to(B.dtype)
        return grad_x, grad_a.to(A.dtype), grad_b.to(B.dtype), grad_bias, None, None, None


class GradientReweighting:
    """Multiplies the gradient that each objective's samples leave on the LoRA factors by a weight.

    The loss, the model's outputs and the gradients at every layer's output stay what they are, so the logged loss is
    the unweighted one and :class:`GradientCapture` measures unweighted gradients. Because the weight meets the gradient
    inside each layer, it may differ from layer to layer. While all weights are one, nothing is changed at all.

    A layer has one reweighting at most: a new one closes what an interrupted training may have left there, which would
    cut the new one's branch out of the graph.

    Args:
        model: a PEFT model with LoRA layers, itself the one that is called: layers that see flattened tokens do not
            tell how many rows the batch has, so that is read off the model's own input.
        objectives: names of the ``K`` objectives.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self.layers: list[LoraFactors] = lora_layers(model)
        self._weights: Tensor | None = None
        self._labels: BatchLabels | None = None
        self._per_layer = False
        self._spreads: dict[tuple[int, tuple[int, ...], int | None, torch.device], Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for owner in owners(hook for layer in self.layers for hook in layer.up._forward_hooks.values()):
            if isinstance(owner, GradientReweighting):
                owner.close()
        self._rows = BatchRows(model)
        for index, layer in enumerate(self.layers):
            self._handles.append(layer.down.register_forward_pre_hook(partial(self._keep_input, index)))
            # Prepended, so that a capture's probe, whichever was made first, stays on top of the replaced output.
            self._handles.append(layer.up.register_forward_hook(partial(self._replace, index), prepend=True))

    @property
    def weights(self) -> Tensor:
        """The weights in force, ``(L, K)`` float64."""
        if self._weights is None:
            return torch.ones(len(self.layers), len(self.objectives), dtype=torch.float64)
        return self._weights

    def set_weights(self, weights: Tensor) -> None:
        """Put weights in force from the next forward pass on.

        Args:
            weights: ``(K,)`` for the whole model or ``(L, K)`` per layer; finite and not negative.

        Raises:
            ConfigError: another shape, or a weight that is negative or not finite.
        """
        values = weights.detach().double().cpu()
        shape = (len(self.layers), len(self.objectives))
        if values.shape not in (shape, shape[1:]) or not bool((values.isfinite() & (values >= 0)).all()):
            raise ConfigError(
                f"weights {values.tolist()!r} must be finite, not negative and of shape {shape[1:]} or {shape}"
            )
        self._weights = None if bool((values == 1).all()) else values.expand(shape).clone()
        self._per_layer = values.ndim == 2
        self._spreads.clear()

    @contextmanager
    def __call__(self, objective_ids: Tensor) -> Iterator[None]:
        """Say which objective each sample of the backward passes inside the block belongs to; −1 keeps weight 1."""
        self.begin(objective_ids)
        try:
            yield
        finally:
            self.end()

    def begin(self, objective_ids: Tensor) -> None:
        """Open a block by hand; see :meth:`__call__`."""
        self._labels = BatchLabels.from_tensor(objective_ids, len(self.objectives))
        self._spreads.clear()

    def end(self) -> None:
        """Close the block."""
        self._labels = None

    def close(self) -> None:
        """Remove every hook; the model is then as it was found."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._rows.close()
        self._inputs.clear()
        self.end()

    def _keep_input(self, index: int, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if self._weights is not None and torch.is_grad_enabled():
            self._inputs[index] = arguments[0]

    def _replace(self, index: int, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = self._inputs.pop(index, None)
        if x is None or not output.requires_grad:
            return output
        layer = self.layers[index]
        replaced: Tensor = _WeightedBranch.apply(  # type: ignore[no-untyped-call]
            x,
            layer.A,
            layer.B,
            layer.up.bias,
            arguments[0].detach(),
            output.detach(),
            partial(self._row_weights, index),
        )
        return replaced

    def _row_weights(self, index: int, x: Tensor) -> Tensor | None:
        if self._labels is None or self._weights is None:
            return None
        rows = self._rows.count
        # The row width does not matter; a model may have its layers on several devices.
        key = (index if self._per_layer else 0, x.shape[:-1], rows, x.device)
        if key not in self._spreads:
            spread = self._labels.expand(self._weights[index], x, rows, self.layers[index].name)
            dtype = torch.float32 if x.dtype != torch.float64 else x.dtype
            # Not waited for, since with weights per layer this is asked in the backward of every layer.
            self._spreads[key] = spread.to(dtype).to(x.device, non_blocking=True)
        return self._spreads[key]
