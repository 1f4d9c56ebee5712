"""Running means of every objective's loss, accuracy and margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from loralign.training.records import plain
from loralign.training.slices import ObjectiveMetrics

_NAMES = ("loss", "accuracy", "margin")


class StepMetrics:
    """Sums over batches, weighted by pairs, that are added over processes when they are read.

    Args:
        objectives: the ``K`` names.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self._sums = torch.zeros(len(self.objectives), 1 + len(_NAMES), dtype=torch.float64)

    def add(self, found: Mapping[int, ObjectiveMetrics]) -> None:
        """Add the metrics of one batch, by objective id."""
        for objective, one in found.items():
            values = torch.tensor([1.0, one.loss, one.accuracy, one.margin], dtype=torch.float64)
            self._sums[objective] += one.pairs * values

    def clear(self) -> None:
        """Forget everything."""
        self._sums.zero_()

    def read(self, accelerator: Any) -> dict[str, dict[str, float]]:
        """Means by objective over all processes, then forget them; objectives without pairs are left out."""
        sums = self._sums
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), reduction="sum").cpu().double()
        means = {
            name: dict(zip(_NAMES, (row[1:] / row[0]).tolist(), strict=True))
            for name, row in zip(self.objectives, sums, strict=True)
            if row[0] > 0
        }
        self.clear()
        return means

    def pop(self, accelerator: Any) -> dict[str, float]:
        """Means under the keys of a trainer's log, ``objective/metric``."""
        means = self.read(accelerator)
        return {f"{name}/{key}": value for name, row in means.items() for key, value in row.items() if value == value}

    def record(self, accelerator: Any) -> dict[str, Any]:
        """Means as a record of ``geometry.jsonl``."""
        means = self.read(accelerator)
        losses = [row["loss"] for row in means.values()]
        return {
            "loss": plain(sum(losses) / len(losses)) if losses else None,
            "objectives": {name: {key: plain(value) for key, value in row.items()} for name, row in means.items()},
        }
