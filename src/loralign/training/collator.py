"""Objective ids in the batch, whatever the collator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from loralign.errors import DataError

OBJECTIVE_IDS = "objective_ids"


class ObjectiveCollator:
    """Wraps any data collator and adds ``objective_ids (batch,)``, read from a column of the examples.

    Args:
        collator: the collator of the trainer in use.
        objectives: the ``K`` names; a name not among them is an error, ``None`` or a missing label becomes −1.
        column: the column that holds the label.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        objectives: Sequence[str],
        column: str = "objective",
    ) -> None:
        self.collator = collator
        self.objectives = tuple(objectives)
        self.column = column
        self._ids = {name: index for index, name in enumerate(self.objectives)}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate ``examples`` and add their ids.

        Raises:
            DataError: a label that is no objective.
        """
        ids = [self._id_of(example.get(self.column)) for example in examples]
        bare = [{key: value for key, value in example.items() if key != self.column} for example in examples]
        batch = dict(self.collator(bare))
        batch[OBJECTIVE_IDS] = torch.tensor(ids, dtype=torch.long)
        return batch

    def _id_of(self, label: Any) -> int:
        if label is None:
            return -1
        if label not in self._ids:
            raise DataError(
                f"objective {label!r} is not known", place=self.column, fix=f"use one of {', '.join(self.objectives)}"
            )
        return self._ids[label]
