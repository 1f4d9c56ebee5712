"""Samplers of searches, seeded trial by trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState


class SeededByTrial(BaseSampler):
    """A sampler that draws what a trial is given from the seed and the trial's number alone, and from the history.

    A sampler seeded once begins anew in every process: a search that goes on would propose its first trials again, and
    so would every further worker. With this, a search by one worker is the same interrupted or not.

    Args:
        make: the sampler of a seed. It must keep what it knows in the study, as Optuna's samplers do.
        seed: of all trials.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed the trial's sampler."""
        self._sampler = self._make(int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the trial's sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the trial's sampler."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the trial's sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the trial's sampler."""
        self._sampler.after_trial(study, trial, state, values)


def tpe(seed: int) -> SeededByTrial:
    """Tree-structured Parzen estimator: ten random trials, then where good ones are dense.

    References:
        Bergstra et al., Algorithms for hyper-parameter optimization, NeurIPS 2011; Ozaki et al., Multiobjective
        tree-structured Parzen estimator, JAIR 73 (2022).
    """
    return SeededByTrial(lambda one: TPESampler(seed=one), seed)


def nsga2(seed: int, population: int) -> SeededByTrial:
    """NSGA-II: generations of ``population`` trials, the first random.

    References:
        Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE TEC 6 (2002).
    """
    return SeededByTrial(lambda one: NSGAIISampler(seed=one, population_size=population), seed)
