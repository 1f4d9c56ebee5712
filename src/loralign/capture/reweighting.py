"""Weighting every objective's gradient on the LoRA factors, whatever the loss was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from loralign.capture.labels import BatchLabels
from loralign.errors import ConfigError
from loralign.lora import LoraFactors, lora_layers

RowWeights = Callable[[Tensor], Tensor | None]


class _WeightedLinear(torch.autograd.Function):
    """A linear layer whose weight gradient is ``Σ_b w_b ∂ℓ_b/∂W`` while the gradient passed on stays unweighted.

    The output is the one the module has already computed; only its backward is replaced.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, row_weights: RowWeights
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.row_weights = row_weights
        return output.view_as(output)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad  # type: ignore[attr-defined]
        gradient = gradients[0]
        # Under autocast the gradient comes in the lower precision that the forward product had.
        work = gradient.dtype
        grad_x = (gradient @ weight.to(work)).to(x.dtype) if needs_x else None
        row_weights = ctx.row_weights(x)  # type: ignore[attr-defined]
        weighted_x, weighted_gradient = x.to(work), gradient
        if row_weights is not None:
            spread = row_weights.to(work).view(-1, *[1] * (x.ndim - 1))
            weighted_gradient = gradient * spread if needs_bias or gradient.shape[-1] <= x.shape[-1] else gradient
            if weighted_gradient is gradient:
                weighted_x = weighted_x * spread
        grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = (weighted_gradient.flatten(0, -2).mT @ weighted_x.flatten(0, -2)).to(weight.dtype)
        if needs_bias:
            grad_bias = weighted_gradient.flatten(0, -2).sum(dim=0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None


class GradientReweighting:
    """Multiplies the gradient that each objective's samples leave on the LoRA factors by a weight.

    The loss, the model's outputs and the gradients at every layer's output stay what they are, so the logged loss is
    the unweighted one and :class:`GradientCapture` measures unweighted gradients. Because the weight meets the gradient
    inside each layer, it may differ from layer to layer. While all weights are one, nothing is changed at all.

    Args:
        model: a PEFT model with LoRA layers.
        objectives: names of the ``K`` objectives.
    """

    def __init__(self, model: nn.Module, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self.layers: list[LoraFactors] = lora_layers(model)
        self._weights: Tensor | None = None
        self._labels: BatchLabels | None = None
        # Prepended, so that a capture's probe, whichever was made first, stays on top of the replaced output.
        self._handles = [
            module.register_forward_hook(partial(self._replace, index), prepend=True)
            for index, layer in enumerate(self.layers)
            for module in (layer.down, layer.up)
        ]

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

    def end(self) -> None:
        """Close the block."""
        self._labels = None

    def close(self) -> None:
        """Remove every hook; the model is then as it was found."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.end()

    def _replace(self, index: int, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._weights is None or not output.requires_grad:
            return output
        replaced: Tensor = _WeightedLinear.apply(  # type: ignore[no-untyped-call]
            arguments[0], module.weight, module.bias, output.detach(), partial(self._row_weights, index)
        )
        return replaced

    def _row_weights(self, index: int, x: Tensor) -> Tensor | None:
        if self._labels is None or self._weights is None:
            return None
        values = self._weights[index].to(device=x.device)
        return self._labels.expand(values, x.shape[0], repeat=x.ndim == 2)
