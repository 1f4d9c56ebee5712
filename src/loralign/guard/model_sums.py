"""The sums of all layers of a model, through one or several passes over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from loralign.capture.sketch import sketch_seed
from loralign.guard.accumulator import FisherSums, TokenGrams
from loralign.guard.fisher_options import FisherOptions
from loralign.guard.nystrom import gaussian_test_matrix
from loralign.lora import LoraFactors

# A stream of random numbers beside those of the halves and of sampled responses.
_TEST_MATRICES = 2


class ModelSums:
    """:class:`~loralign.guard.accumulator.FisherSums` for every layer.

    Args:
        layers: of the model.
        options: which say how wide the test matrices are.

    Attributes:
        layers: the sums, in the order of the layers.
        sketched: whether any layer is sketched, so that another pass can sharpen it.
    """

    def __init__(self, layers: Sequence[LoraFactors], options: FisherOptions) -> None:
        # Layers of the same height share a test matrix: nothing asks for independent ones.
        tests: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        self.layers: list[FisherSums] = []
        for layer in layers:
            rows, columns = layer.shape
            dtype = torch.float64 if layer.B.dtype == torch.float64 else torch.float32
            width, test = options.sketch_width(rows), None
            if width is not None:
                key = (rows, dtype, layer.B.device)
                if key not in tests:
                    seed = sketch_seed(options.seed, _TEST_MATRICES, rows)
                    tests[key] = gaussian_test_matrix(rows, width, seed).to(dtype=dtype, device=layer.B.device)
                test = tests[key]
            weight = getattr(layer.base, "weight", None)
            narrow = weight is not None and weight.dtype == torch.bfloat16
            device = layer.B.device
            self.layers.append(FisherSums(rows, columns, test, dtype=dtype, device=device, from_bfloat16=narrow))
        self.sketched = bool(tests)
        self._grams = TokenGrams()

    def add(self, index: int, x: Tensor, g: Tensor, split: int) -> None:
        """Add one layer's part of a backward pass; see :meth:`FisherSums.add`."""
        self.layers[index].add(x, g, split, self._grams)

    def clear(self) -> None:
        """Let go of what layers shared in the backward pass that has ended."""
        self._grams.clear()

    def all_reduce(self) -> None:
        """Sum what the pass has gathered over all processes."""
        for layer in self.layers:
            for buffer in layer.buffers():
                dist.all_reduce(buffer)

    def next_pass(self) -> None:
        """Begin another pass in which the test matrices span what the sketches of this one found."""
        for layer in self.layers:
            layer.next_pass()
            if layer.test is not None and dist.is_available() and dist.is_initialized():
                # The QR factors of different machines may differ in sign.
                dist.broadcast(layer.test, src=0)

    def tensors(self) -> dict[str, Tensor]:
        """All that a later call needs to go on, by name."""
        return {
            f"{i}.{name}": tensor for i, layer in enumerate(self.layers) for name, tensor in layer.tensors().items()
        }

    def load(self, tensors: Mapping[str, Tensor], passes: int) -> None:
        """Continue from what :meth:`tensors` gave.

        Args:
            tensors: by name.
            passes: finished before.
        """
        for index, layer in enumerate(self.layers):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            layer.load(own, first_pass=passes == 0)
