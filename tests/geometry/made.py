"""Statistics made from explicit gradients, for tests that need no model."""

from __future__ import annotations

import torch
from torch import Tensor

from loralign.capture import GradientStatistics
from tests.oracles import accessible_part, gram


def statistics_of(layers: list[tuple[list[Tensor], Tensor, Tensor, float]], samples=None) -> GradientStatistics:
    """From ``([G_i], A, B, s)`` per layer, by the dense formulas."""
    full, accessible, euclidean = [], [], []
    for gradients, A, B, scaling in layers:
        full.append(gram(gradients))
        accessible.append(gram([accessible_part(gradient, A, B) for gradient in gradients]))
        pairs = [(scaling * B.mT @ gradient, scaling * gradient @ A.mT) for gradient in gradients]
        euclidean.append(gram([torch.cat([a.flatten(), b.flatten()]) for a, b in pairs]))
    count = len(layers[0][0])
    return GradientStatistics(
        objectives=tuple(f"objective {i}" for i in range(count)),
        layer_names=tuple(f"layer {i}" for i in range(len(layers))),
        layer_full=torch.stack(full),
        layer_accessible=torch.stack(accessible),
        layer_euclidean=torch.stack(euclidean),
        samples=torch.full((count,), 4.0).double() if samples is None else torch.tensor(samples).double(),
        tokens=torch.full((count,), 40.0).double(),
    )


def random_layers(seed: int, objectives: int = 3, layers: int = 2, rank: int = 3):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        ([(index + 1) * draw(7, 9) for index in range(objectives)], draw(rank, 9), draw(7, rank), 2.0)
        for _ in range(layers)
    ]
