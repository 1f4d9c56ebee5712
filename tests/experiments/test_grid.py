from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState

from loralign.errors import ConfigError
from loralign.experiments.failure import CellFailed
from loralign.experiments.grid import Objective, Progress, Work, failures, finished_trials
from loralign.experiments.storage import Storage
from tests.experiments.worker import CELLS


def postgres_program(name: str) -> str | None:
    """Debian keeps the server's programs out of PATH."""
    found = [shutil.which(name), *map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True))]
    return next((one for one in found if one), None)


SERVER = postgres_program("postgres"), postgres_program("initdb")


def test_every_cell_is_run_once_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    done: list[str] = []
    told: list[Progress] = []

    def objective(trial: Trial) -> float:
        cell = trial.suggest_categorical("cell", [one["cell"] for one in CELLS])
        done.append(cell)
        if cell == "c2":
            raise CellFailed("out of memory")
        return 0.0

    work = Work("grid", Storage.beside(tmp_path), tell=told.append)
    study = work.run_all(CELLS, objective)
    assert done == [one["cell"] for one in CELLS]
    assert failures(study) == ["out of memory"]
    assert len(finished_trials(study)) == 5
    assert (told[-1].finished, told[-1].failed, told[-1].total) == (6, 1, 6)
    assert told[0].remaining_seconds is None
    assert told[3].remaining_seconds is not None
    # Neither what is finished nor what failed is done twice.
    work.run_all(CELLS, objective)
    assert len(done) == 6


def counted(done: list[str], fails: str = "") -> Objective:
    def objective(trial: Trial) -> float:
        cell = trial.suggest_categorical("cell", [one["cell"] for one in CELLS])
        done.append(cell)
        if cell == fails:
            raise CellFailed("no memory")
        return 0.0

    return objective


def test_what_has_no_results_is_run_again_whatever_the_database_says(tmp_path: Path) -> None:
    """Results that were removed, another output directory with the same database, another try of what failed."""
    done: list[str] = []
    work = Work("grid", Storage.beside(tmp_path))
    work.run_all(CELLS, counted(done, fails="c1"))
    for _ in range(2):
        done.clear()
        work.run_all(CELLS, counted(done, fails="c1"), lambda one: one["cell"] in ("c1", "c4"))
        assert sorted(done) == ["c1", "c4"]


def test_an_interrupted_cell_is_the_next_that_is_run_and_nothing_is_drawn(tmp_path: Path) -> None:
    done: list[str] = []

    def interrupted(trial: Trial) -> float:
        cell = trial.suggest_categorical("cell", [one["cell"] for one in CELLS])
        if cell == "c2":
            raise KeyboardInterrupt
        done.append(cell)
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        Work("grid", Storage.beside(tmp_path)).run_all(CELLS, interrupted)
    Work("grid", Storage.beside(tmp_path)).run_all(CELLS, counted(done))
    assert sorted(done) == [one["cell"] for one in CELLS]


def test_a_search_tries_failed_points_again_when_asked(tmp_path: Path) -> None:
    tried: list[float] = []

    def objective(trial: Trial) -> float:
        tried.append(trial.suggest_float("x", 0, 1))
        if len(tried) in (2, 4):
            raise CellFailed("diverged")
        return tried[-1]

    def work() -> Work:
        return Work("search", Storage.beside(tmp_path), sampler=optuna.samplers.RandomSampler(seed=1))

    work().search(3, objective)
    work().search(3, objective, again=True)
    assert tried[3:] == [tried[1]]
    # However often it has failed, it is tried once more each time, until it has a value; then never again.
    work().search(3, objective, again=True)
    assert tried[4:] == [tried[1]]
    work().search(3, objective, again=True)
    assert len(tried) == 5
    # Another try was none of those that are wanted.
    work().search(4, objective)
    assert len(tried) == 6


@pytest.mark.parametrize("moment", ["in the cell", "after it", "as it is told"])
@pytest.mark.parametrize("end", ["lost", "completed"])
def test_a_trial_that_another_worker_has_ended_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, end: str
) -> None:
    """One takes this worker for dead, or SQLite handed the trial out to both and the other was quicker."""
    work = Work("grid", Storage.beside(tmp_path))
    study = work.open()
    done: list[str] = []
    told = RDBStorage.set_trial_state_values

    def elsewhere(trial: int, cell: str) -> None:
        state, values = (TrialState.FAIL, None) if end == "lost" else (TrialState.COMPLETE, [1.0])
        told(work.storage.open(), trial, state, values)
        if end == "lost":
            study.enqueue_trial({"cell": cell})

    def late(storage: RDBStorage, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if moment == "as it is told" and state.is_finished() and len(done) == 1:
            monkeypatch.setattr(RDBStorage, "set_trial_state_values", told)
            elsewhere(trial_id, done[0])
        return told(storage, trial_id, state, values)

    def objective(trial: Trial) -> float:
        cell = trial.suggest_categorical("cell", [one["cell"] for one in CELLS])
        done.append(cell)
        if len(done) == 1 and moment != "as it is told":
            elsewhere(trial._trial_id, cell)
            if moment == "in the cell":
                trial.set_user_attr("steps", 1)
        return 0.0

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", late)
    work.run_all(CELLS, objective)
    again = [done[0]] if end == "lost" else []
    assert sorted(done) == sorted([*again, *(one["cell"] for one in CELLS)])


def test_a_fault_of_the_code_is_not_taken_for_another_workers_doing(tmp_path: Path) -> None:
    def objective(trial: Trial) -> float:
        raise ValueError("matrices do not match")

    with pytest.raises(ValueError, match="matrices do not match"):
        Work("grid", Storage.beside(tmp_path)).run_all(CELLS, objective)


def test_another_fault_than_a_cells_own_ends_the_work(tmp_path: Path) -> None:
    def objective(trial: Trial) -> float:
        raise ConfigError("nothing fits")

    with pytest.raises(ConfigError, match="nothing fits"):
        Work("grid", Storage.beside(tmp_path)).run_all(CELLS, objective)


def test_a_search_ends_at_its_number_of_trials_however_often_it_is_called(tmp_path: Path) -> None:
    tried: list[float] = []

    def objective(trial: Trial) -> tuple[float, float]:
        tried.append(trial.suggest_float("x", 0, 1))
        if len(tried) == 3:
            raise CellFailed("diverged")
        return tried[-1], 1 - tried[-1]

    def work() -> Work:
        sampler = optuna.samplers.TPESampler(seed=1)
        return Work("search", Storage.beside(tmp_path), directions=("maximize", "maximize"), sampler=sampler)

    study = work().search(5, objective)
    assert len(tried) == 5
    assert len(study.best_trials) >= 1
    assert len(finished_trials(study)) == 4
    work().search(5, objective)
    assert len(tried) == 5
    work().search(7, objective)
    assert len(tried) == 7


def test_workers_that_look_at_the_same_moment_do_not_begin_more_trials_than_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another begins the last trial just before this one does, and ends it or dies in it."""
    begun: list[float] = []
    told: list[Progress] = []
    others: list[Trial] = []
    work = Work("search", Storage.beside(tmp_path), sampler=optuna.samplers.RandomSampler(seed=1), tell=told.append)
    study = work.open()
    optimize = optuna.Study.optimize

    def beaten(self: optuna.Study, *words: object, **named: object) -> None:
        if len(begun) == 2 and len(others) < 2:
            with pytest.warns(UserWarning, match="Heartbeat"):
                others.append(study.ask())
        optimize(self, *words, **named)  # type: ignore[arg-type]

    def passes(seconds: float) -> None:
        last = len(others) == 2
        study.tell(others[-1], [0.5] if last else None, TrialState.COMPLETE if last else TrialState.FAIL)

    monkeypatch.setattr(optuna.Study, "optimize", beaten)
    monkeypatch.setattr("loralign.experiments.grid.time.sleep", passes)

    def objective(trial: Trial) -> float:
        begun.append(trial.suggest_float("x", 0, 1))
        return begun[-1]

    work.search(3, objective)
    assert (len(begun), len(others)) == (2, 2)
    assert len(finished_trials(study)) == told[-1].finished == 3
    assert told[-1].failed == 0
    assert failures(study) == []


def test_a_database_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--storage: cannot be used"):
        Storage("no-url").open()
    with pytest.raises(ConfigError, match="--storage"):
        Storage(f"sqlite:///{tmp_path}/no/folder/trials.db").open()


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, listening on this machine only."""
    server, initialise = SERVER
    if server is None or initialise is None:
        pytest.skip("no PostgreSQL server here; install Debian's package postgresql to test many workers on one")
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    directory = tmp_path_factory.mktemp("postgres")
    data = directory / "data"
    data.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(data, user, user)
        shutil.chown(directory, user, user)
        for parent in directory.parents:
            if parent != Path("/") and parent.owner() == "root":
                parent.chmod(parent.stat().st_mode | 0o011)
    name = user or pwd.getpwuid(os.geteuid()).pw_name
    subprocess.run(
        [initialise, "-D", data, "-A", "trust", "-U", name, "--no-sync"], user=user, check=True, capture_output=True
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", f"unix_socket_directories={directory}"]
    process = subprocess.Popen(
        [server, "-D", data, "-p", str(port), *options],
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"postgresql+psycopg://{name}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def spawn(url: str, directory: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.experiments.worker", url, str(directory), *words]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def check_takeover(url: str, directory: Path) -> None:
    """Several workers share the cells; the trial of one that is killed is run by another, and all wait for that."""
    victim = spawn(url, directory, "hang")
    while not (directory / "hanging").exists():
        assert victim.poll() is None
        time.sleep(0.05)
    others = [spawn(url, directory) for _ in range(2)]
    victim.kill()
    victim.wait()
    assert [other.wait(timeout=600) for other in others] == [0, 0]
    ran = [path.name.split("-") for path in directory.iterdir() if path.name != "hanging"]
    assert {cell for cell, *_ in ran} == {one["cell"] for one in CELLS}
    assert str(victim.pid) not in {worker for _, worker, _ in ran}
    lost = (directory / "hanging").read_text()
    assert lost in {cell for cell, *_ in ran}


def test_a_trial_whose_worker_died_before_its_first_sign_of_life_is_run_too(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/trials.db", heartbeat=1, grace=1)
    study = Work("grid", storage, directions=("minimize",)).open()
    study.enqueue_trial({"cell": "c0"})
    # Handed out, and never heard of again.
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    done: list[str] = []

    def objective(trial: Trial) -> float:
        done.append(trial.suggest_categorical("cell", ["c0", "c1"]))
        return 0.0

    Work("grid", storage, directions=("minimize",)).run_all([{"cell": "c0"}, {"cell": "c1"}], objective)
    assert sorted(done) == ["c0", "c1"]


def test_a_killed_workers_trial_is_taken_up_by_another_on_postgresql(database: str, tmp_path: Path) -> None:
    check_takeover(database, tmp_path)


def test_a_killed_workers_trial_is_taken_up_by_another_on_sqlite(tmp_path: Path) -> None:
    (tmp_path / "ran").mkdir()
    check_takeover(f"sqlite:///{tmp_path}/trials.db", tmp_path / "ran")
