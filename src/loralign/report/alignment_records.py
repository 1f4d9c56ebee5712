"""What the directory of a ``loralign align`` run holds, as one plain immutable record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loralign.report.guard_records import GuardedRun
from loralign.report.records import Measurement, Numbers, Refinement, Sample, ScoreSet, TrainingStep


@dataclass(frozen=True)
class Run:
    """Everything a report is made from.

    Attributes:
        objectives: names in the order of ``run.json``, followed by any that only the measurements know.
        targets: target weight λ per objective.
        config, data, environment: nested settings as written by the run.
        guarded: what a guard did meanwhile, ``None`` where there was none.
        scores: score set by ``"before"``, ``"after"``, ``"reference"``, and ``"difference"`` (paired, after − before).
        notes: what was missing, damaged or cut off, in plain sentences.
    """

    name: str
    model: str
    objectives: tuple[str, ...]
    targets: Numbers
    weighting: str
    status: str
    seconds: float | None
    seed: Any
    command: tuple[str, ...]
    config: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    stated_headline: str | None
    guarded: GuardedRun | None
    measurements: tuple[Measurement, ...]
    refinements: tuple[Refinement, ...]
    steps: tuple[TrainingStep, ...]
    scores: dict[str, ScoreSet]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]

    @property
    def last(self) -> Measurement | None:
        """The last measurement that has an attenuation of any objective."""
        return next(
            (m for m in reversed(self.measurements) if any(v is not None for v in m.attenuation.values())), None
        )

    @property
    def first(self) -> Measurement | None:
        """The first measurement that has an attenuation of any objective."""
        return next((m for m in self.measurements if any(v is not None for v in m.attenuation.values())), None)
