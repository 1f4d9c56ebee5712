"""A search: trials of a space, each run with every seed, for two measures at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.trial import Trial, TrialState

from loralign.errors import ConfigError, LoralignError
from loralign.experiments.cell import Cell, CellSettings, Command
from loralign.experiments.contents import identity_digest
from loralign.experiments.experiment import Arm, ArmResult, ExperimentOptions
from loralign.experiments.failure import CellFailed
from loralign.experiments.grid import FAILURE, Work
from loralign.experiments.outcomes import measure, outcome
from loralign.experiments.running import run_cell
from loralign.experiments.search_plan import SearchPlan
from loralign.experiments.seed_means import Samples, over_seeds, value
from loralign.experiments.space import Parameter, Point, grid_points
from loralign.experiments.storage import Direction, Storage
from loralign.experiments.store import CellStore


def run_search(
    name: str, command: Command, base: CellSettings, plan: SearchPlan, options: ExperimentOptions
) -> list[ArmResult]:
    """Run the trials of a search, none twice, and collect what they found.

    A trial is a cell for every seed, and its values are the means over them. One that fails, or whose settings do not
    go together, fails the trial; the search goes on. Any number of processes on any number of machines may call this
    with the same arguments and one storage: they share the trials, and each returns when all are done.

    Args:
        name: of the experiment.
        command: that a cell runs.
        base: recipe that all trials share, of :func:`~loralign.experiments.cell.base_settings`.
        plan: what is searched.
        options: seeds, places, measures.

    Returns:
        One result for each point that was tried, in the order of trials; a failed one holds the reasons.

    Raises:
        ConfigError: an end of the space that the recipe refuses, before any cell is run; a trial lacks a measure that
            the search is for.
    """
    store = CellStore(options.output)
    made = _Maker(command, base, options)
    points = grid_points(plan.space) if plan.sampler == "grid" else []
    for point in points or _ends(plan.space):
        made.cells(point)
    options.measures.check()

    def objective(trial: Trial) -> tuple[float, float]:
        point = {one.name: one.suggest(trial) for one in plan.space}
        try:
            cells = made.cells(point).values()
            outcomes = [outcome(run_cell(store, cell, options.launcher)) for cell in cells]
        except LoralignError as error:
            raise CellFailed(str(error)) from error
        return _values(trial, outcomes, plan.measures)

    directions: list[Direction] = ["maximize" if measure(key).higher else "minimize" for key in plan.measures]
    work = Work(
        _study_name(name, made, plan, options),
        Storage.beside(options.output, options.storage),
        directions=directions,
        sampler=plan.make_sampler(),
        tell=options.tell,
        unit="trials",
    )
    if points:
        work.run_all(points, objective, lambda point: made.wanted(store, point))
    else:
        points = _tried(work.search(plan.trials, objective, again=options.launcher.retry), plan.space)
    return [_collect(store, made, Arm(_arm_name(index, one), one)) for index, one in enumerate(points, start=1)]


def point_text(point: Point) -> str:
    """``lambda_alignment 10, guard_projection hard``."""
    return ", ".join(f"{name} {value_text(one)}" for name, one in point.items())


def value_text(one: Any) -> str:
    """A setting's value with three digits."""
    return f"{one:.3g}" if isinstance(one, float) else str(one)


@dataclass(frozen=True)
class _Maker:
    """Makes the cells of a point."""

    command: Command
    base: CellSettings
    options: ExperimentOptions

    def cells(self, point: Point) -> dict[int, Cell]:
        return {seed: self.options.cell(self.command, self.base, point, seed) for seed in self.options.seeds}

    def wanted(self, store: CellStore, point: Point) -> bool:
        """Whether a cell of the point has no results here, or failed and is to be tried again."""
        records = [store.record(cell) for cell in self.cells(point).values()]
        failed = any(record is not None and not record.finished for record in records)
        return self.options.launcher.retry if failed else None in records


def _ends(space: Sequence[Parameter]) -> list[Point]:
    """Points that hold every value of a list and both ends of a range once, the other fields at their first."""
    first = {one.name: one.ends[0] for one in space}
    return [first, *({**first, one.name: end} for one in space for end in one.ends[1:])]


def _study_name(name: str, made: _Maker, plan: SearchPlan, options: ExperimentOptions) -> str:
    first = made.cells(_ends(plan.space)[0])
    # A trial has the values of what its worker measured.
    measured = sorted(one.fingerprint for one in options.measures.asked())
    cells = sorted(cell.fingerprint for cell in first.values())
    digest = identity_digest({"cells": cells, "measured": measured, "plan": plan.identity()})
    return f"{name}-{plan.sampler}-{digest[:12]}"


def _values(trial: Trial, outcomes: Sequence[dict[str, Samples]], keys: tuple[str, str]) -> tuple[float, float]:
    """The trial's two values; a measure that is not there is a fault of the search, not of the trial."""
    found = []
    for key in keys:
        samples = over_seeds(outcomes, key)
        if samples is None:
            fault = _lacking(key, set.intersection(*map(set, outcomes)))
            trial.set_user_attr(FAILURE, str(fault))
            raise fault
        found.append(value(samples))
    return found[0], found[1]


def _lacking(key: str, known: set[str]) -> ConfigError:
    there = ", ".join(sorted(known))
    if key == "retention":
        return ConfigError(
            "the start refuses none of the unsafe prompts, or was asked none, so there is no retention",
            place="--trade",
            fix=f"ask more with --driftcheck or --judged_prompts, or choose two of {there}",
        )
    return ConfigError(f"the trials do not have {key!r}", place="--trade", fix=f"choose two of {there}")


def _tried(study: Study, space: Sequence[Parameter]) -> list[Point]:
    """The points of finished and of failed trials, each once; one whose worker died was run again under its own."""
    points: list[Point] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE or FAILURE in trial.user_attrs:
            point = {one.name: trial.params[one.name] for one in space}
            if point not in points:
                points.append(point)
    return points


def _arm_name(number: int, point: Point) -> str:
    return f"{number}: {point_text(point)}"


def _collect(store: CellStore, made: _Maker, arm: Arm) -> ArmResult:
    """What the cells of a point found; seeds that were not run because another failed are not counted as failed."""
    try:
        records = {seed: store.record(cell) for seed, cell in made.cells(dict(arm.overrides)).items()}
    except LoralignError as error:
        return ArmResult(arm, (), (), dict.fromkeys(made.options.seeds, str(error)))
    finished = tuple(record for record in records.values() if record is not None and record.finished)
    failures = {
        seed: record.error or "unknown"
        for seed, record in records.items()
        if record is not None and not record.finished
    }
    if len(finished) < len(records) and not failures:
        failures = {seed: "its worker died too often" for seed, record in records.items() if record is None}
    return ArmResult(arm, finished, tuple(map(outcome, finished)), failures)
