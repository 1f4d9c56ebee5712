"""Sampling that shows every objective to every optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from loralign.errors import ConfigError, DataError

SAMPLING_MODES = ("balanced", "proportional")


class ObjectiveSampler(Sampler[int]):
    """Indices such that each consecutive ``step_size`` of them, one optimiser step, holds every objective.

    An optimiser step is ``micro_batch × processes × accumulation`` samples in the order in which accelerate deals
    batches to processes, so the same step is seen whatever the number of processes. Every objective has its own
    shuffled stream, started again with a new shuffle when it runs out; inside a step the samples are dealt so that
    micro-batches are mixed alike, and inside a micro-batch they are grouped by objective. The order is a function of
    seed and epoch alone, hence the same after a resume.

    Args:
        labels: objective id of every row of the data set.
        objectives: number ``K`` of objectives.
        step_size: samples per optimiser step, over all processes and accumulation steps; at least ``K``.
        micro_batch: samples per process and backward pass; divides ``step_size``.
        mode: ``"balanced"``: equal counts per step, the remainder taking turns; ``"proportional"``: counts as in the
            data, at least one each.
        seed: of the shuffles.

    Raises:
        ConfigError: an unknown mode, or sizes that do not fit.
        DataError: an objective without rows, or a label out of range.
    """

    def __init__(
        self,
        labels: Sequence[int],
        objectives: int,
        *,
        step_size: int,
        micro_batch: int,
        mode: str = "balanced",
        seed: int = 0,
    ) -> None:
        if mode not in SAMPLING_MODES:
            raise ConfigError(f"sampling {mode!r} is unknown", fix=f"use one of {', '.join(SAMPLING_MODES)}")
        if step_size < objectives:
            raise ConfigError(
                f"a step of {step_size} pairs cannot hold {objectives} objectives",
                fix="raise per_device_train_batch_size or gradient_accumulation_steps",
            )
        if step_size % micro_batch:
            raise ConfigError(f"a step of {step_size} pairs is no multiple of the batch size {micro_batch}")
        self._rows: list[list[int]] = [[] for _ in range(objectives)]
        for row, label in enumerate(labels):
            if not 0 <= label < objectives:
                raise DataError(f"objective id {label} is not in 0..{objectives - 1}", place=f"row {row}")
            self._rows[label].append(row)
        empty = [objective for objective, rows in enumerate(self._rows) if not rows]
        if empty:
            raise DataError(f"objective {empty[0]} has no rows")
        self.step_size = step_size
        self.micro_batch = micro_batch
        self.mode = mode
        self.seed = seed
        self.epoch = 0
        self.steps = max(1, len(labels) // step_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.step_size

    def __iter__(self) -> Iterator[int]:
        streams = [self._stream(objective) for objective in range(len(self._rows))]
        owed = [0.0] * len(self._rows)
        for step in range(self.steps):
            counts = self._counts(step, owed)
            chosen = [(objective, next(streams[objective])) for objective, n in enumerate(counts) for _ in range(n)]
            batches = self.step_size // self.micro_batch
            for batch in range(batches):
                yield from (row for _, row in chosen[batch::batches])

    def _counts(self, step: int, owed: list[float]) -> list[int]:
        """How many samples of each objective a step takes; ``owed`` carries fractions from step to step."""
        size, total = len(self._rows), sum(map(len, self._rows))
        if self.mode == "balanced":
            extra = self.step_size % size
            # The remainder's turn moves on, counted over epochs, so that no objective is favoured in the long run.
            first = (self.epoch * self.steps + step) * extra
            turns = {(first + offset) % size for offset in range(extra)}
            return [self.step_size // size + (objective in turns) for objective in range(size)]
        for objective, rows in enumerate(self._rows):
            owed[objective] += self.step_size * len(rows) / total
        counts = [max(1, int(debt)) for debt in owed]
        order = sorted(range(size), key=lambda objective: owed[objective] - counts[objective])
        while sum(counts) > self.step_size:
            counts[next(objective for objective in order if counts[objective] > 1)] -= 1
            order = sorted(range(size), key=lambda objective: owed[objective] - counts[objective])
        while sum(counts) < self.step_size:
            counts[max(range(size), key=lambda objective: owed[objective] - counts[objective])] += 1
        for objective, count in enumerate(counts):
            owed[objective] -= count
        return counts

    def _stream(self, objective: int) -> Iterator[int]:
        rows = self._rows[objective]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 31 + objective)
        while True:
            yield from (rows[position] for position in torch.randperm(len(rows), generator=generator).tolist())
