"""What scoring measured on every preference pair: kept whole, so that any comparison can be paired."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from loralign.errors import DataError, StateError
from loralign.files import atomic_path

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_FORMAT = "loralign.pair_scores"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class PairScores:
    """Sums over the response tokens of each pair, in nats; column 0 is the chosen, column 1 the rejected response.

    Args:
        objectives: the objective of each pair.
        rows: ``(pairs,)`` int64, each pair's index in the data it came from.
        tokens: ``(pairs, 2)`` int64, response tokens that were scored.
        log_prob: ``(pairs, 2)`` float64, Σ log π.
        reference_log_prob: ``(pairs, 2)`` float64, Σ log π_ref; None if there is no reference.
        kl_policy_reference: ``(pairs, 2)`` float64, Σ KL(π‖π_ref) over the response's positions; None likewise.
        kl_reference_policy: ``(pairs, 2)`` float64, Σ KL(π_ref‖π); None likewise.
    """

    objectives: tuple[str, ...]
    rows: IntArray
    tokens: IntArray
    log_prob: FloatArray
    reference_log_prob: FloatArray | None = None
    kl_policy_reference: FloatArray | None = None
    kl_reference_policy: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.objectives)

    def of_reference(self) -> PairScores:
        """The scores that the reference itself would get, measured against itself.

        Before training the policy is the reference, so these are also the scores before training.

        Raises:
            DataError: the pairs were scored without a reference.
        """
        if self.reference_log_prob is None:
            raise DataError("the pairs were scored without a reference", place="pair scores", fix="score with one")
        zero = np.zeros_like(self.reference_log_prob)
        return replace(
            self, log_prob=self.reference_log_prob, kl_policy_reference=zero, kl_reference_policy=zero.copy()
        )

    def of_objectives(self, names: Collection[str]) -> PairScores:
        """The pairs of the named objectives, in their order."""
        chosen = [index for index, objective in enumerate(self.objectives) if objective in names]
        arrays: dict[str, Any] = {
            key: None if array is None else array[chosen] for key, array in self._arrays().items()
        }
        return PairScores(tuple(self.objectives[index] for index in chosen), **arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything, bit for bit, as one safetensors file, atomically.

        Raises:
            OutputError: the file system refused the write.
        """
        arrays = {key: np.ascontiguousarray(array) for key, array in self._arrays().items() if array is not None}
        metadata = {"format": _FORMAT, "version": str(_VERSION), "objectives": json.dumps(self.objectives)}
        with atomic_path(path) as temporary:
            save_file(arrays, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PairScores:
        """Read what :meth:`save` wrote.

        Raises:
            StateError: the file is missing, damaged, of another kind or of another version.
        """
        place = str(path)
        if not Path(path).is_file():
            raise StateError("no such file", place=place, fix="score the pairs again")
        try:
            arrays = load_file(path)
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("version") != str(_VERSION):
                raise StateError(
                    f"not pair scores of version {_VERSION}", place=place, fix="score the pairs again with this version"
                )
            scores = cls(tuple(json.loads(metadata["objectives"])), **arrays)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"damaged pair scores: {error}", place=place, fix="score the pairs again") from error
        scores._check(place)
        return scores

    def _arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "objectives"}

    def _check(self, place: str) -> None:
        for key, array in self._arrays().items():
            shape = (len(self),) if key == "rows" else (len(self), 2)
            kind = "i" if key in ("rows", "tokens") else "f"
            if array is not None and (array.shape != shape or array.dtype != np.dtype(f"{kind}8")):
                raise StateError(
                    f"{key} is {array.dtype} {array.shape}, not {kind}8 {shape}", place=place, fix="score again"
                )
