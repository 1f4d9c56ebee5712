"""Opening a database: by several workers at once, without its driver, and with another Optuna's tables."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from loralign.errors import ConfigError
from loralign.experiments import storage
from loralign.experiments.grid import Work
from loralign.experiments.storage import Storage
from tests.experiments.test_grid import database

__all__ = ["database"]

DUPLICATE = IntegrityError("CREATE TABLE studies", None, Exception("duplicate key value"))
EXISTS = ProgrammingError("CREATE TABLE alembic_version", None, Exception("relation already exists"))
REFUSED = OperationalError("connect", None, Exception("connection refused"))
OPENING = """
import sys, time
from pathlib import Path
from loralign.experiments.grid import Work
from loralign.experiments.storage import Storage

mine, go, *urls = sys.argv[1:]
Path(mine).touch()
while not Path(go).exists():
    time.sleep(0.001)
for url in urls:
    Work("shared", Storage(url)).open()
"""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    return waited


def refusing(act: Callable[..., Any], *errors: Exception) -> Callable[..., Any]:
    """Raises these, one a call, before it acts."""
    left = list(errors)

    def call(*words: Any, **named: Any) -> Any:
        if left:
            raise left.pop(0)
        return act(*words, **named)

    return call


def test_workers_that_make_the_tables_of_a_database_at_once_all_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(storage, "RDBStorage", refusing(RDBStorage, DUPLICATE, EXISTS))
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = EXISTS
    monkeypatch.setattr(optuna, "create_study", refusing(optuna.create_study, wrapped))
    assert Work("grid", Storage.beside(tmp_path)).open().study_name == "grid"
    assert len(pauses) == 3


@pytest.mark.parametrize("error", [DUPLICATE, EXISTS, REFUSED])
def test_what_a_database_keeps_refusing_is_told_and_what_is_no_race_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], error: SQLAlchemyError
) -> None:
    reason = str(error.orig)
    monkeypatch.setattr(storage, "RDBStorage", refusing(RDBStorage, *[error] * 20))
    with pytest.raises(ConfigError, match=rf"--storage: cannot be used: .*{reason}.*sqlite:///trials.db"):
        Work("grid", Storage.beside(tmp_path)).open()
    assert (2 < len(pauses) < 10) == (error is not REFUSED)
    monkeypatch.setattr(storage, "RDBStorage", RDBStorage)
    monkeypatch.setattr(optuna, "create_study", refusing(optuna.create_study, *[error] * 20))
    with pytest.raises(ConfigError, match=rf"--storage: cannot be used: .*{reason}"):
        Work("grid", Storage.beside(tmp_path)).open()


def test_workers_that_start_together_on_a_new_postgresql_database_all_open_it(database: str, tmp_path: Path) -> None:
    urls = []
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as server:
        for number in range(5):
            server.execute(f"CREATE DATABASE new{number}".encode())
            urls.append(f"{database.rpartition('/')[0]}/new{number}")
    ready = [tmp_path / f"ready{number}" for number in range(5)]
    go = tmp_path / "go"
    workers = [
        subprocess.Popen([sys.executable, "-c", OPENING, str(mine), str(go), *urls], stderr=subprocess.PIPE)
        for mine in ready
    ]
    while not all(mine.exists() for mine in ready):
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.05)
    go.touch()
    faults = [worker.communicate(timeout=300)[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), "\n".join(faults)


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("postgresql+psycopg://nobody@nowhere/none", r"psycopg is not .*\(pip install 'loralign\[postgresql\]'\)"),
        # As older versions of SQLAlchemy take a bare postgresql:// too.
        (
            "postgresql+psycopg2://me@nowhere/none",
            r"psycopg2 is .*'loralign\[postgresql\]' and .* postgresql\+psycopg:",
        ),
        ("mysql+pymysql://nobody@nowhere/none", r"pymysql is not installed \(install the driver"),
    ],
)
def test_a_driver_that_is_missing_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, fix: str
) -> None:
    for driver in ("psycopg", "psycopg2", "pymysql"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigError, match=f"--storage: cannot be used: {fix}"):
        Storage(url).open()


def test_tables_of_another_version_of_optuna_are_told_in_one_line(tmp_path: Path) -> None:
    Storage.beside(tmp_path).open()
    with sqlite3.connect(tmp_path / "trials.db") as tables:
        tables.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    tables.close()
    with pytest.raises(ConfigError, match=r"--storage: cannot be used: .*no longer compatible.*a new database"):
        Storage.beside(tmp_path).open()
