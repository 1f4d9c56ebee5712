"""Working through the cells of an experiment: Optuna hands them out, here or to many workers on many machines."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import optuna
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from loralign.errors import StateError
from loralign.experiments.failure import CellFailed
from loralign.experiments.storage import Direction, Storage, one_line

logger = logging.getLogger(__name__)

Parameters = dict[str, Any]
Objective = Callable[[Trial], "float | Sequence[float]"]

FAILURE = "failure"
"""Attribute of a trial with the reason why its cell failed."""

_BEGUN, _AGAIN = "begun", "again"

_POLL = 2.0


@dataclass(frozen=True)
class Progress:
    """How far the work has come.

    Attributes:
        finished: trials that ended, failures included.
        failed: of those, the ones that failed.
        running: trials that workers have.
        total: trials wanted.
        seconds: that the trials took which this worker ran itself.
        own: number of those.
        unit: what a trial is: one of the ``cells``, or of the ``trials`` of a search, each a cell for every seed.
    """

    finished: int
    failed: int
    running: int
    total: int
    seconds: float = 0.0
    own: int = 0
    unit: str = "cells"

    @property
    def remaining_seconds(self) -> float | None:
        """At the pace of this worker, shared with the others that work now; ``None`` before its first trial."""
        if not self.own:
            return None
        return (self.total - self.finished) * self.seconds / self.own / max(1, self.running)


@dataclass
class Work:
    """One experiment's study, as far as handing out goes.

    Attributes:
        name: of the study: the same experiment always has the same one.
        storage: where it is kept.
        directions: of every objective, ``maximize`` or ``minimize``.
        sampler: proposes parameters where a trial has none; only searches need one.
        tell: is called before and after every trial.
        unit: what a trial is, as progress tells it.
    """

    name: str
    storage: Storage
    directions: Sequence[Direction] = ("maximize",)
    sampler: Any = None
    tell: Callable[[Progress], None] = field(default=lambda progress: None)
    unit: str = "cells"

    def open(self) -> optuna.Study:
        """Create the study, or join it.

        Raises:
            ConfigError: the database cannot be used.
        """
        # A failed trial is told of by its reason, not by a stack trace.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return self.storage.study(self.name, self.directions, self.sampler)

    def run_all(
        self,
        parameters: Sequence[Parameters],
        objective: Objective,
        wanted: Callable[[Parameters], bool] = lambda parameters: False,
    ) -> optuna.Study:
        """Run a trial for each set of parameters, however many workers call this; nothing else is ever tried.

        Returns when none is waiting or running, by whomever; a trial whose worker has died is run by another.

        Args:
            parameters: one set a trial, in the order of work.
            objective: of a trial, whose parameters are fixed; raises :class:`CellFailed`.
            wanted: whether a set is to be run although a trial of it has ended: its results were removed or lie in
                another directory, or it failed and is to be tried again.
        """
        study = self.open()
        for one in parameters:
            states = {trial.state for trial in study.get_trials(deepcopy=False) if _parameters(trial) == one}
            if not states & {TrialState.WAITING, TrialState.RUNNING} and (not _ended(study, one) or wanted(one)):
                # Two workers that begin at the same moment may both enqueue it; its cell is then found finished.
                study.enqueue_trial(one)
        return self._work(study, objective, len(parameters), distinct=True)

    def search(self, trials: int, objective: Objective, *, again: bool = False) -> optuna.Study:
        """Run as many trials in all as wanted, those of earlier calls and of other workers included.

        Args:
            trials: in all.
            objective: of a trial; raises :class:`CellFailed`.
            again: try every point once more, beyond that number, that has failed and is in no other state.
        """
        study = self.open()
        if again:
            known = study.get_trials(deepcopy=False)
            tried = [_parameters(trial) for trial in known if not trial.state.is_finished() or trial.values]
            for point in [_parameters(trial) for trial in known if _failed(trial)]:
                if point not in tried:
                    study.enqueue_trial(point, user_attrs={_AGAIN: True})
                    tried.append(point)
        return self._work(study, objective, trials, distinct=False)

    def _work(self, study: optuna.Study, objective: Objective, total: int, *, distinct: bool) -> optuna.Study:
        seconds, own, told = 0.0, 0, None
        while True:
            self._free_lost_trials(study)
            progress = replace(_progress(study, total, distinct), seconds=seconds, own=own, unit=self.unit)
            if progress != told:
                self.tell(progress)
                told = progress
            waiting = bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
            if not waiting and (progress.running or distinct or progress.finished >= total):
                if not progress.running:
                    return study
                if distinct or progress.finished + progress.running >= total:
                    # Others are at the last ones, and may die.
                    time.sleep(_POLL)
                    continue
            began = time.monotonic()
            self._try(study, objective, None if distinct else total)
            seconds, own = seconds + time.monotonic() - began, own + 1

    def _try(self, study: optuna.Study, objective: Objective, most: int | None) -> None:
        """One trial. One that is interrupted waits again; one that another worker has ended is left to it.

        Where there may be only so many trials, one that is beyond them is given up before it has begun.
        """
        begun: list[Trial] = []
        faults: list[Exception] = []

        def noted(trial: Trial) -> float | Sequence[float]:
            # Workers that look at the same moment may all see room for the last one.
            if most is not None and _surplus(study, trial, most):
                raise _Surplus
            begun.append(trial)
            try:
                return _recorded(objective)(trial)
            except (CellFailed, optuna.exceptions.UpdateFinishedTrialError):
                raise
            except Exception as error:
                faults.append(error)
                raise

        try:
            study.optimize(noted, n_trials=1, catch=(CellFailed, _Surplus))
        except (ValueError, AssertionError, optuna.exceptions.UpdateFinishedTrialError):
            # Optuna cannot end a trial that has been ended; which of these it raises depends on the moment.
            if faults or not begun or not _ended_elsewhere(study, begun[-1]):
                raise
            logger.warning("another worker took this one for dead and has ended its trial, which is left to it")
        except KeyboardInterrupt:
            for trial in begun:
                study.enqueue_trial(
                    dict(trial.params), user_attrs={_AGAIN: True} if _AGAIN in trial.user_attrs else None
                )
            raise
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise StateError(
                f"the database went away: {one_line(error)}",
                place="--storage",
                fix="repeat the command; finished cells are kept",
            ) from error

    def _free_lost_trials(self, study: optuna.Study) -> None:
        """Let trials whose workers have died wait again: those that went silent, and those that never said a word."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(study)
        # Optuna takes a trial for lost once its signs of life have stopped, but not where there never was one.
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _BEGUN not in trial.user_attrs and _age(trial) > 2 * self.storage.grace:
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                study.enqueue_trial(_parameters(trial))


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that have values, in their order."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def failures(study: optuna.Study) -> list[str]:
    """Why trials failed."""
    return [str(trial.user_attrs[FAILURE]) for trial in study.get_trials(deepcopy=False) if FAILURE in trial.user_attrs]


def _recorded(objective: Objective) -> Objective:
    """A trial says that it has begun, and a failure leaves its reason: that tells it from one whose worker died."""

    def call(trial: Trial) -> float | Sequence[float]:
        storage = trial.study._storage
        if isinstance(storage, BaseHeartbeat):
            # Optuna's own first sign of life comes from a thread, and a worker may die before that has run.
            storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(_BEGUN, True)
        try:
            return objective(trial)
        except CellFailed as error:
            trial.set_user_attr(FAILURE, str(error))
            raise

    return call


class _Surplus(Exception):  # noqa: N818 - a state of a trial, which a search survives
    """A trial beyond those that are wanted."""


def _surplus(study: optuna.Study, trial: Trial, most: int) -> bool:
    """Whether so many trials were begun before this one; of two that begin at once, only the later is given up."""
    if _AGAIN in trial.user_attrs:
        return False
    ahead = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
    return (
        sum(_counts(one) or (one.state == TrialState.RUNNING and _AGAIN not in one.user_attrs) for one in ahead) >= most
    )


def _progress(study: optuna.Study, total: int, distinct: bool) -> Progress:
    """Count trials, or sets of parameters where the same may have been handed out twice.

    Another try of a trial that had failed is no trial more.
    """
    trials = study.get_trials(deepcopy=False)

    def count(states: Callable[[FrozenTrial], bool]) -> int:
        chosen = [trial for trial in trials if states(trial)]
        return len({tuple(sorted(trial.params.items())) for trial in chosen}) if distinct else len(chosen)

    failed = count(lambda trial: _failed(trial) and _AGAIN not in trial.user_attrs)
    finished = count(_counts)
    running = count(lambda trial: trial.state == TrialState.RUNNING)
    return Progress(finished, failed, running, total)


def _ended_elsewhere(study: optuna.Study, trial: Trial) -> bool:
    """Whether another worker has ended this trial: it took it for lost, or SQLite had handed it out to both."""
    found = next(one for one in study.get_trials(deepcopy=False) if one.number == trial.number)
    return found.state.is_finished() and not _failed(found)


def _parameters(trial: FrozenTrial) -> Parameters:
    """Those that it has, or that it was enqueued with and has not asked for yet."""
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))


def _ended(study: optuna.Study, parameters: Parameters) -> bool:
    """Whether a trial of these parameters has a value, or a reason why it has none."""
    ends = [trial for trial in study.get_trials(deepcopy=False) if _parameters(trial) == parameters]
    return any(trial.state == TrialState.COMPLETE or _failed(trial) for trial in ends)


def _age(trial: FrozenTrial) -> float:
    """Seconds since it was handed out, by the clocks of these machines."""
    return 0.0 if trial.datetime_start is None else (datetime.now() - trial.datetime_start).total_seconds()


def _counts(trial: FrozenTrial) -> bool:
    """Whether it has ended as one of those that are wanted."""
    return (trial.state == TrialState.COMPLETE or _failed(trial)) and _AGAIN not in trial.user_attrs


def _failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and FAILURE in trial.user_attrs
