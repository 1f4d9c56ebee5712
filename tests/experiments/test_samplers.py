from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.trial import Trial

from loralign.experiments.samplers import SeededByTrial, nsga2, tpe

Make = Callable[[], SeededByTrial]
SAMPLERS = pytest.mark.parametrize("make", [lambda: tpe(0), lambda: nsga2(0, 4)], ids=["tpe", "nsga2"])


def objective(trial: Trial) -> tuple[float, float]:
    x, y = trial.suggest_float("x", 0.1, 10, log=True), trial.suggest_categorical("y", [1, 2])
    return x * y, y - x


def proposed(make: Make, *trials: int) -> list[tuple[float, ...]]:
    """The points of a search that several processes, one after the other, go on with."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    for count in trials:
        study = optuna.create_study(
            study_name="s",
            storage=storage,
            directions=["maximize", "minimize"],
            sampler=make(),
            load_if_exists=True,
        )
        study.optimize(objective, n_trials=count)
    return [tuple(trial.params.values()) for trial in study.get_trials(deepcopy=False)]


@SAMPLERS
def test_an_interrupted_search_proposes_what_an_uninterrupted_one_does(make: Make) -> None:
    whole = proposed(make, 16)
    assert proposed(make, 3, 9, 4) == whole
    assert len(set(whole)) > 4


@SAMPLERS
def test_trials_that_run_at_the_same_time_are_given_different_points(make: Make) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    asked = []
    for _ in range(4):
        study = optuna.create_study(
            study_name="s", storage=storage, directions=["maximize", "minimize"], sampler=make(), load_if_exists=True
        )
        asked.append(study.ask().suggest_float("x", 0.1, 10, log=True))
    assert len(set(asked)) == 4


def test_another_seed_is_another_search() -> None:
    assert proposed(lambda: tpe(1), 3) != proposed(lambda: tpe(0), 3)
