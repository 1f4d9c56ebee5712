"""The updates that training has realised lately, in factored form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loralign.errors import StateError
from loralign.lora import LoraFactors


class UpdateWindow:
    """Realised updates ``D_j = s(B_j A_j − B_{j−1} A_{j−1})`` of the last windows, never formed as ``(m, n)``.

    Call :meth:`mark` at the start of training and after every refinement. The updates of past windows are weighted by
    ``decay`` per window, newest first, and the rank of the factored sum grows by ``r`` with each window kept.

    Args:
        layers: the LoRA layers to follow.
        windows: how many past windows are kept.
        decay: weight of a window against the next one.
    """

    def __init__(self, layers: Sequence[LoraFactors], windows: int = 1, decay: float = 0.5) -> None:
        self.layers = list(layers)
        self.windows = windows
        self.decay = decay
        self._marks: list[list[tuple[Tensor, Tensor]]] = []
        self.mark()

    def mark(self) -> None:
        """Begin a new window at the factors as they now are."""
        self._marks.append([(layer.B.detach().clone(), layer.A.detach().clone()) for layer in self.layers])
        del self._marks[: -self.windows]

    def updates(self, index: int) -> tuple[Tensor, Tensor]:
        """Factors ``(m, k)``, ``(k, n)`` of layer ``index``'s decayed sum of updates, divided by its scaling ``s``."""
        layer = self.layers[index]
        states = [*(mark[index] for mark in self._marks), (layer.B.detach(), layer.A.detach())]
        # Abel summation: the weight of a state is that of the window it ends less that of the window it begins.
        weights = [self.decay ** (len(states) - 2 - position) for position in range(len(states) - 1)]
        coefficients = [before - after for before, after in zip([0.0, *weights], [*weights, 0.0], strict=True)]
        left = torch.cat([c * B for c, (B, _) in zip(coefficients, states, strict=True)], dim=1)
        right = torch.cat([A for _, A in states], dim=0)
        return left, right

    def state_dict(self) -> dict[str, Tensor]:
        """The kept marks as named tensors, ready for safetensors."""
        return {
            f"{position}.{index}.{name}": factor
            for position, mark in enumerate(self._marks)
            for index, pair in enumerate(mark)
            for name, factor in zip("BA", pair, strict=True)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state_dict`.

        Raises:
            StateError: the marks do not fit the layers.
        """
        count = len(state) // (2 * len(self.layers))
        expected = {f"{p}.{i}.{name}" for p in range(count) for i in range(len(self.layers)) for name in "BA"}
        if set(state) != expected or not count:
            raise StateError("the saved update window does not fit the adapter's layers")
        marks = []
        for position in range(count):
            mark = []
            for index, layer in enumerate(self.layers):
                B, A = state[f"{position}.{index}.B"], state[f"{position}.{index}.A"]
                if B.shape != layer.B.shape or A.shape != layer.A.shape:
                    raise StateError("the saved update window has other shapes", place=layer.name)
                mark.append((B.to(layer.B), A.to(layer.A)))
            marks.append(mark)
        self._marks = marks
