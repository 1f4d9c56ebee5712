"""What the penalty allocates, counted operation by operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.guard.task_curvature import CurvatureFactor, TaskCurvature
from loralign.lora import LoraFactors

MIB = 2**20
SMOLLM2 = [(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 2 + [(576, 1536)]


class Allocations(TorchDispatchMode):
    """Bytes of all tensors made inside the block that are alive at once, and the largest single one."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {self._key(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and self._key(one) not in given:
                storage = one.untyped_storage()
                self._alive[self._key(one)] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata


def _layers(shapes, rank: int, subspace_rank: int) -> tuple[list[LoraFactors], list[LayerSubspace]]:
    """Layers of one shape share base and subspace, which the penalty only reads."""
    bases = {(m, n): nn.Linear(n, m, bias=False, dtype=torch.bfloat16) for m, n in shapes}
    spaces = {}
    for m, n in shapes:
        basis = torch.linalg.qr(torch.randn(m, subspace_rank)).Q
        spaces[m, n] = LayerSubspace(basis, torch.linspace(2, 1, subspace_rank), 100.0, n)
    layers = []
    for number, (m, n) in enumerate(shapes):
        down, up = nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False)
        layers.append(LoraFactors(f"layer {number}", down, up, 2.0, bases[m, n].requires_grad_(False)))
    return layers, [spaces[shape] for shape in shapes]


def _factor(size: int) -> CurvatureFactor:
    return CurvatureFactor(torch.ones(1).expand(size), torch.zeros(1, 1).expand(size, 16))


def test_the_counter_counts():
    given = torch.ones(MIB // 4)
    with Allocations() as count:
        kept = given + 1
        for _ in range(3):
            given.mul_(2).view(2, -1)
            _ = kept.clone()
            del _
    assert count.peak == 2 * MIB
    assert count.largest == MIB
    del kept


@pytest.mark.parametrize("projection", ["hard", "soft"])
def test_nothing_of_the_size_of_a_layer_is_made(projection):
    layers, subspaces = _layers([(512, 768)], rank=4, subspace_rank=8)
    with Allocations() as count:
        penalty = GuardPenalty(layers, subspaces, 1.0, PenaltyOptions(projection=projection, tile_rows=8))
        penalty.backward(PenaltyWeights())
    # Six buffers of a tile of 8 rows are the largest thing: less than one tenth of one dense matrix.
    assert count.largest == 6 * 8 * 768 * 4
    assert count.peak < 512 * 768 * 4 / 2


@pytest.mark.parametrize("form", ["identity", "kronecker"])
def test_smollm2_takes_less_than_64_mib_with_everything(form):
    """All 210 layers, r 16, m 32; copies of subspaces and curvature, new ``.grad`` and buffers counted together."""
    layers, subspaces = _layers(SMOLLM2 * 30, rank=16, subspace_rank=32)
    curvature = [TaskCurvature(*(_factor(size) for size in layer.shape)) for layer in layers]
    with Allocations() as count:
        options = PenaltyOptions(projection="soft", task_curvature=form)
        GuardPenalty(layers, subspaces, 1.0, options, curvature).backward(PenaltyWeights())
    assert len(layers) == 210
    assert count.peak < 64 * MIB


def test_a_layer_of_14336_by_4096_takes_less_than_256_mib():
    layers, subspaces = _layers([(14336, 4096)], rank=16, subspace_rank=64)
    with Allocations() as count:
        GuardPenalty(layers, subspaces, 1.0).backward(PenaltyWeights())
    assert count.peak < 256 * MIB
    # One dense matrix in float32 would be 224 MiB.
    assert count.largest < 16 * MIB
