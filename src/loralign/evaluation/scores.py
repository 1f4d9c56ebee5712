"""Scores as they are reported: every measure of every objective with its interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from loralign.errors import StateError
from loralign.evaluation.bootstrap import Estimate

Kind = Literal["scores", "difference"]

_FORMAT = "loralign.scores"
_VERSION = 1


@dataclass(frozen=True)
class ObjectiveScores:
    """The measures on a set of pairs.

    Args:
        pairs: how many pairs.
        measures: name of :data:`~loralign.evaluation.measures.MEASURES` to estimate.
    """

    pairs: int
    measures: dict[str, Estimate]


@dataclass(frozen=True)
class Worst:
    """The objective that a measure is worst for, and its estimate there."""

    objective: str
    estimate: Estimate


@dataclass(frozen=True)
class Scores:
    """Scores of one model, or paired differences between two.

    Args:
        kind: ``"scores"``, or ``"difference"`` where every value is after minus before.
        beta: the β of margin and loss.
        confidence: of all intervals.
        resamples: of the bootstrap behind them.
        seed: of the bootstrap.
        objectives: by objective.
        overall: all pairs together, whatever their objective.
        macro: mean over the objectives, each counting the same.
        worst: by measure; for a difference, the objective that gained least. Measures that are neither good nor bad
            when high have none.
    """

    kind: Kind
    beta: float
    confidence: float
    resamples: int
    seed: int
    objectives: dict[str, ObjectiveScores]
    overall: ObjectiveScores
    macro: dict[str, Estimate]
    worst: dict[str, Worst]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold, with its format and version."""
        return {"format": _FORMAT, "version": _VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scores:
        """Read what :meth:`to_json` gave.

        Raises:
            StateError: it is something else, of another version, or incomplete.
        """
        if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (_FORMAT, _VERSION):
            raise StateError(
                f"not scores of version {_VERSION}", place="scores", fix="evaluate again with this version of loralign"
            )
        try:
            return cls(
                kind=_kind(value["kind"]),
                beta=float(value["beta"]),
                confidence=float(value["confidence"]),
                resamples=int(value["resamples"]),
                seed=int(value["seed"]),
                objectives={name: _objective(part) for name, part in value["objectives"].items()},
                overall=_objective(value["overall"]),
                macro=_estimates(value["macro"]),
                worst={
                    name: Worst(str(part["objective"]), _estimate(part["estimate"]))
                    for name, part in value["worst"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(
                f"incomplete scores: {type(error).__name__} {error}", place="scores", fix="evaluate again"
            ) from error

    def table(self, measures: tuple[str, ...] | None = None) -> list[dict[str, str]]:
        """Rows for printing: one for each objective, for all pairs, for the mean of objectives and for the worst.

        Args:
            measures: which and in which order; all by default. Those that were not measured are left out.

        Returns:
            Each row a dictionary with ``objective``, ``pairs`` and, by measure, text such as ``0.62 [0.55, 0.69]``.
        """
        names = [name for name in (measures or tuple(self.overall.measures)) if name in self.overall.measures]
        parts = {**self.objectives, "all pairs": self.overall}
        rows = [
            {"objective": title, "pairs": str(part.pairs), **{name: self._text(part.measures[name]) for name in names}}
            for title, part in parts.items()
        ]
        macro = {name: self._text(self.macro[name]) for name in names}
        worst = {
            name: f"{self._text(self.worst[name].estimate)} {self.worst[name].objective}" if name in self.worst else ""
            for name in names
        }
        return [
            *rows,
            {"objective": "mean of objectives", "pairs": "", **macro},
            {"objective": "worst objective", "pairs": "", **worst},
        ]

    def _text(self, estimate: Estimate) -> str:
        sign = "+" if self.kind == "difference" else ""
        numbers = (estimate.value, estimate.low, estimate.high)
        # Divergences per token are often well below 0.01, where three decimals would say little.
        digits = 5 if max(map(abs, numbers)) < 0.01 else 3
        value, low, high = (f"{number:{sign}.{digits}f}" for number in numbers)
        return f"{value} [{low}, {high}]"


def _kind(value: str) -> Kind:
    if value == "scores":
        return "scores"
    if value == "difference":
        return "difference"
    raise ValueError(f"kind {value!r}")


def _objective(value: dict[str, Any]) -> ObjectiveScores:
    return ObjectiveScores(int(value["pairs"]), _estimates(value["measures"]))


def _estimates(value: dict[str, Any]) -> dict[str, Estimate]:
    return {name: _estimate(part) for name, part in value.items()}


def _estimate(value: dict[str, Any]) -> Estimate:
    return Estimate(float(value["value"]), float(value["low"]), float(value["high"]))
