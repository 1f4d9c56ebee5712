"""Which objective each row of a batch belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from loralign.errors import DataError, StateError


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

        All are zero where all weights are: such a batch has no part in any mean.

        Raises:
            DataError: another number of weights than ids.
        """
        if sample_weights is None:
            return torch.tensor(self.counts(objectives), dtype=torch.float64) / len(self.ids)
        weights = sample_weights.detach().double().cpu()
        if weights.shape != (len(self.ids),):
            raise DataError(f"{tuple(weights.shape)} sample weights do not fit {len(self.ids)} objective ids")
        sums = [weights[torch.tensor(self.ids) == objective].sum() for objective in range(objectives)]
        total = weights.sum()
        return torch.stack(sums) / torch.where(total == 0, torch.ones_like(total), total)

    def runs(self, rows: int, tokens: int = 1) -> list[tuple[int, int, int]]:
        """Split a batch into maximal runs ``(start, stop, id)`` of one objective, leaving out id −1.

        Args:
            rows: of the batch. It may be a multiple of the number of ids: stacked copies of the samples, as in DPO's
                ``[chosen; rejected]``, over which the ids are tiled.
            tokens: by which ``start`` and ``stop`` count: 1 for rows of the batch, or else the tokens of each row where
                all are flattened in the order of the rows.

        Raises:
            DataError: ``rows`` is no multiple of the number of ids.
        """
        return _runs(self.ids, rows, tokens)

    def runs_of(self, x: Tensor, batch_rows: int | None, place: str) -> list[tuple[int, int, int]]:
        """The runs of a layer's input, counted by its first dimension.

        Args:
            x: ``(rows, …, n)``, or all tokens flattened in the order of the rows, ``(rows · tokens, n)``.
            batch_rows: rows of the batch, which the latter does not tell; ``None`` where nobody knows them.
            place: name of the layer, for the errors.

        Raises:
            DataError: the ids do not fit the rows.
            StateError: flattened tokens that are not those of the batch, or of which nobody knows the order.
        """
        if x.ndim != 2:
            return self.runs(x.shape[0])
        if x.shape[0] == len(self.ids) or len(set(self.ids)) == 1:
            batch_rows = len(self.ids)
        if batch_rows is None:
            raise StateError(
                f"the layer saw {x.shape[0]} flattened tokens, which do not tell how many rows the batch has",
                place=place,
                fix="call the model that was given to the capture, not a module inside it",
            )
        if x.shape[0] % batch_rows:
            raise StateError(
                f"the layer saw {x.shape[0]} tokens of a batch of {batch_rows} rows",
                place=place,
                fix="tokens that are routed to experts cannot be told apart; leave this module out of target_modules",
            )
        return self.runs(batch_rows, x.shape[0] // batch_rows)

    def expand(self, values: Tensor, x: Tensor, batch_rows: int | None, place: str) -> Tensor:
        """Spread one value per objective ``(K,)`` over the first dimension of ``x``; where the id is −1 it is 1.

        Args:
            values: ``(K,)``.
            x: as in :meth:`runs_of`, as for the arguments that follow.
            batch_rows: as there.
            place: as there.

        Raises:
            DataError: as there.
            StateError: as there.
        """
        spread = torch.ones(x.shape[0], dtype=values.dtype, device=values.device)
        for start, stop, objective in self.runs_of(x, batch_rows, place):
            spread[start:stop] = values[objective]
        return spread


@lru_cache(maxsize=256)
def _runs(ids: tuple[int, ...], rows: int, tokens: int) -> list[tuple[int, int, int]]:
    if rows % len(ids):
        raise DataError(
            f"{len(ids)} objective ids do not fit a batch of {rows} rows",
            fix="pass one id per sample; chosen and rejected of a pair share theirs",
        )
    merged = _merged(ids * (rows // len(ids)))
    return [(start * tokens, stop * tokens, objective) for start, stop, objective in merged if objective >= 0]


def _merged(ids: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or ids[stop] != ids[start]:
            yield start, stop, ids[start]
            start = stop
