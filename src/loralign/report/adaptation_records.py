"""What the directory of a ``loralign adapt`` run holds, as plain immutable records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loralign.report.guard_records import GuardedRun, GuardScores
from loralign.report.records import Metric, Sample


@dataclass(frozen=True)
class AdaptationScores(GuardScores):
    """What was gained and lost, each with its bootstrap interval.

    Attributes:
        task_before, task_after: loss on held-back task samples, nats per response token.
        task_gain: the paired difference, before minus after.
    """

    task_before: Metric | None
    task_after: Metric | None
    task_gain: Metric | None


@dataclass(frozen=True)
class Adaptation(GuardedRun):
    """Everything that the page of an adaptation is made from; without a guard only its drift is known.

    Attributes:
        scores: ``None`` until the run has finished.
        environment: nested settings as written by the run.
        notes: what was missing, damaged or cut off, in plain sentences.
    """

    scores: AdaptationScores | None
    name: str
    model: str
    status: str
    seconds: float | None
    seed: Any
    command: tuple[str, ...]
    environment: dict[str, Any]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
