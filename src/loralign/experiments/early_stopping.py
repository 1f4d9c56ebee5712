"""Plain LoRA stopped early: how far it had drifted when it had learned as much of the task as a guarded arm.

An arm that learns less drifts less, and so does a training that is simply stopped. Both lie in the log that every
adaptation keeps, so that no cell is run for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

from loralign.evaluation.bootstrap import Ratio
from loralign.experiments.experiment import ArmResult
from loralign.experiments.finding import DRIFT, REDUCTION, ArmScore, estimate_text
from loralign.experiments.seed_means import Units, avoided, compared, value
from loralign.experiments.store import CellRecord
from loralign.report.format import significant
from loralign.report.guard_reading import read_guarded
from loralign.report.theme import Table

STOPPED = "plain stopped early"
"""The reference of the differences, beside the plain arm as it ended."""

STOPPED_NOTE = (
    "Stopped early is plain LoRA of the same seed at the step at which its loss on the watched held-back samples first "
    "came down to what the arm's was when it was last measured. Both are from the runs' logs, and between two "
    "measurements, every probe_every steps, drift and loss are taken to go straight. A run that is meant to be short "
    "would have lowered its learning rate by then, as this has not. Intervals are over seeds alone."
)


@dataclass(frozen=True)
class Moment:
    """A run as it was after some optimiser steps.

    Attributes:
        step: how many; between two measurements no whole number.
        loss: on the watched held-back samples of the task, nats per token.
        drift: on the probe, nats per token.
    """

    step: float
    loss: float
    drift: float


@dataclass(frozen=True)
class Stopping:
    """One arm beside plain LoRA stopped at its loss, over the seeds for which there is such a moment.

    Attributes:
        arm: its name.
        ends: of the arm, by seed.
        stops: of plain LoRA, by the same seeds.
        missed: seeds with which plain LoRA never came down to the arm's loss.
    """

    arm: str
    ends: dict[int, Moment]
    stops: dict[int, Moment]
    missed: tuple[int, ...] = ()

    def scores(self) -> list[ArmScore]:
        """The arm's drift minus that of plain LoRA where it is stopped, and the share of it that the arm avoids."""
        after, before = _units(self.ends), _units(self.stops)
        difference, reduction = compared(after, before, DRIFT), compared(after, before, DRIFT, avoided)
        if difference is None or reduction is None:
            return []
        found = [ArmScore.of(self.arm, DRIFT, difference, STOPPED)]
        return found + ([ArmScore.of(self.arm, REDUCTION, reduction, STOPPED)] if value(reduction.before) > 0 else [])

    def row(self) -> tuple[str, ...]:
        """Of :func:`stopped_table`."""
        stops, ends = self.stops.values(), self.ends.values()
        reduction = [estimate_text(one.value, sign=True) for one in self.scores() if one.measure == REDUCTION]
        return (
            self.arm,
            str(len(stops)),
            significant(fmean(one.loss for one in ends)),
            f"{fmean(one.step for one in stops):.1f}",
            significant(fmean(one.drift for one in stops)),
            significant(fmean(one.drift for one in ends)),
            *(reduction or [""]),
        )


def course(record: CellRecord) -> list[Moment]:
    """The measurements of drift and of the held-back loss in an adaptation's log, the start first; none without both.

    Args:
        record: of a finished cell.
    """
    guarded = read_guarded(record.run, {}, {}, [])
    drifts = {one.step: one.kl for one in guarded.probes if one.kl is not None}
    # Steps are counted from 0 there, and the start is step −1.
    return [
        Moment(one.step + 1, one.loss, drifts[one.step])
        for one in guarded.held_back
        if one.loss is not None and one.step in drifts
    ]


def stopped_at(moments: Sequence[Moment], loss: float) -> Moment | None:
    """The first moment at which a run has come down to a loss; ``None`` where it never has.

    Args:
        moments: of :func:`course`.
        loss: nats per token.
    """
    if moments and moments[0].loss <= loss:
        return moments[0]
    for before, after in pairwise(moments):
        if after.loss <= loss:
            share = (before.loss - loss) / (before.loss - after.loss)
            step, drift = (one + share * (other - one) for one, other in _both(before, after))
            return Moment(step, loss, drift)
    return None


def stoppings(results: Sequence[ArmResult], plain: str) -> list[Stopping]:
    """Every other arm beside the plain one stopped at its loss, seed by seed; those left out whose logs say nothing.

    Args:
        results: of the arms.
        plain: name of the plain one.
    """
    known = {one.arm.name: {cell.seed: course(cell) for cell in one.cells} for one in results}
    before = known.pop(plain, {})
    found = []
    for arm, courses in known.items():
        ends = {seed: moments[-1] for seed, moments in courses.items() if moments and before.get(seed)}
        stops = {seed: stopped_at(before[seed], end.loss) for seed, end in ends.items()}
        reached = {seed: stop for seed, stop in stops.items() if stop is not None}
        if ends:
            both = {seed: ends[seed] for seed in reached}
            found.append(Stopping(arm, both, reached, tuple(seed for seed in ends if seed not in reached)))
    return found


def stopped_table(found: Sequence[Stopping]) -> Table | None:
    """Arms beside plain LoRA stopped at their losses; ``None`` where there are none."""
    rows = tuple(one.row() for one in found if one.stops)
    headings = ("arm", "seeds", "held-back loss", "plain stopped after", "its drift", "drift", "drift reduction")
    return Table(headings, rows) if rows else None


def missed_notes(found: Sequence[Stopping]) -> list[str]:
    """A sentence for every arm whose loss plain LoRA did not reach."""
    return [
        f"{one.arm}: with seed {seed} plain LoRA never came down to its held-back loss, so it is not stopped early."
        for one in found
        for seed in one.missed
    ]


def _both(before: Moment, after: Moment) -> list[tuple[float, float]]:
    return [(before.step, after.step), (before.drift, after.drift)]


def _units(moments: dict[int, Moment]) -> Units:
    return {("", seed): {DRIFT: (Ratio(np.array([one.drift]), np.ones(1)),)} for seed, one in moments.items()}
