"""Which objective each row of a batch belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from loralign.errors import DataError


@dataclass(frozen=True)
class BatchLabels:
    """Objective ids of one batch, fitted to whatever row count a layer sees.

    Attributes:
        ids: one id per sample, in ``0..K-1``, or −1 for a sample that belongs to no objective.
    """

    ids: tuple[int, ...]

    @classmethod
    def from_tensor(cls, ids: Tensor, objectives: int) -> BatchLabels:
        """Check and keep a ``(batch,)`` integer tensor of ids.

        Raises:
            DataError: not one-dimensional, empty, or an id outside ``−1..objectives−1``.
        """
        if ids.ndim != 1 or ids.numel() == 0 or ids.dtype.is_floating_point:
            raise DataError(f"objective ids must be a (batch,) integer tensor, got {tuple(ids.shape)} {ids.dtype}")
        values = tuple(int(value) for value in ids.tolist())
        if min(values) < -1 or max(values) >= objectives:
            raise DataError(f"objective ids must lie in -1..{objectives - 1}, got {min(values)}..{max(values)}")
        return cls(values)

    def counts(self, objectives: int) -> list[int]:
        """Number of samples of each objective."""
        return [self.ids.count(objective) for objective in range(objectives)]

    def shares(self, objectives: int, sample_weights: Tensor | None = None) -> Tensor:
        """Share of each objective's samples in a weighted mean over the batch, ``(K,)`` float64.

        Raises:
            DataError: another number of weights than ids.
        """
        if sample_weights is None:
            return torch.tensor(self.counts(objectives), dtype=torch.float64) / len(self.ids)
        weights = sample_weights.detach().double().cpu()
        if weights.shape != (len(self.ids),):
            raise DataError(f"{tuple(weights.shape)} sample weights do not fit {len(self.ids)} objective ids")
        sums = [weights[torch.tensor(self.ids) == objective].sum() for objective in range(objectives)]
        return torch.stack(sums) / weights.sum()

    def runs(self, rows: int, *, repeat: bool = False) -> list[tuple[int, int, int]]:
        """Split ``rows`` into maximal runs ``(start, stop, id)`` of one objective, leaving out id −1.

        ``rows`` may be a multiple of the number of ids: stacked copies of the batch, as in DPO's ``[chosen;
        rejected]``, where the ids are tiled; or, with ``repeat``, all tokens flattened in sample order.

        Raises:
            DataError: ``rows`` is no multiple of the number of ids.
        """
        return _runs(self.ids, rows, repeat)

    def expand(self, values: Tensor, rows: int, *, repeat: bool = False) -> Tensor:
        """Spread one value per objective ``(K,)`` over ``rows``; rows of id −1 get 1. Returns ``(rows,)``."""
        spread = torch.ones(rows, dtype=values.dtype, device=values.device)
        for start, stop, objective in self.runs(rows, repeat=repeat):
            spread[start:stop] = values[objective]
        return spread


@lru_cache(maxsize=256)
def _runs(ids: tuple[int, ...], rows: int, repeat: bool) -> list[tuple[int, int, int]]:
    if rows % len(ids):
        raise DataError(
            f"{len(ids)} objective ids do not fit a batch of {rows} rows",
            fix="pass one id per sample; chosen and rejected of a pair share theirs",
        )
    times = rows // len(ids)
    if repeat:
        return [(start * times, stop * times, objective) for start, stop, objective in _merged(ids) if objective >= 0]
    return [run for run in _merged(ids * times) if run[2] >= 0]


def _merged(ids: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or ids[stop] != ids[start]:
            yield start, stop, ids[start]
            start = stop
