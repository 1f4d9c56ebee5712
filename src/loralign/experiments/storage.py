"""The database in which Optuna keeps what it has handed out, opened by any number of workers at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from loralign.errors import ConfigError

T = TypeVar("T")

Direction = Literal["minimize", "maximize"]

_HEARTBEAT = 10
"""Seconds between two signs of life of a worker."""
_GRACE = 40
"""Seconds without one after which its trial is given to another."""
_RETRIES = 3
_PAUSES = (0.1, 0.3, 1.0, 2.0)
"""Seconds between attempts at what another worker may be doing at the same moment."""


@dataclass(frozen=True)
class Storage:
    """Where Optuna keeps what has been handed out.

    Attributes:
        url: of a database; a file of SQLite beside the cells by default.
        heartbeat: seconds between two signs of life of a worker.
        grace: seconds without one after which its trial is given to another.
    """

    url: str
    heartbeat: int = _HEARTBEAT
    grace: int = _GRACE

    @classmethod
    def beside(cls, directory: Path, url: str | None = None) -> Storage:
        """The given database, or SQLite in ``directory``."""
        if url is None:
            directory.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{(directory / 'trials.db').resolve()}"
        return cls(url)

    def open(self) -> RDBStorage:
        """Connect, making the tables where there are none.

        Raises:
            ConfigError: there is no such database, no driver for it, or its tables are of another version of Optuna.
        """
        try:
            # Two workers that make the tables of a new database at once get in each other's way.
            with self._alone(), warnings.catch_warnings():
                # The heartbeat is what experiments rest on; Optuna calls it experimental.
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return _again_after_a_race(self._connect)
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or "its driver"
            raise ConfigError(
                f"cannot be used: {missing} is not installed", place="--storage", fix=self._driver(missing)
            ) from error
        except RuntimeError as error:
            # Optuna says which of the two versions is the older, and what to run.
            raise ConfigError(
                f"cannot be used: {one_line(error)}", place="--storage", fix="or give the URL of a new database"
            ) from error
        except (SQLAlchemyError, ValueError) as error:
            raise _unusable(error) from error

    def study(self, name: str, directions: Sequence[Direction], sampler: Any) -> optuna.Study:
        """Create a study, or join it.

        Args:
            name: by which workers find each other.
            directions: of its values.
            sampler: of Optuna's, or ``None`` for its default.

        Raises:
            ConfigError: as :meth:`open`.
        """
        opened = self.open()
        try:
            return _again_after_a_race(
                lambda: optuna.create_study(
                    study_name=name,
                    storage=opened,
                    directions=list(directions),
                    sampler=sampler,
                    load_if_exists=True,
                )
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise _unusable(error) from error

    def _connect(self) -> RDBStorage:
        return RDBStorage(
            self.url,
            heartbeat_interval=self.heartbeat,
            grace_period=self.grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES),
        )

    def _driver(self, missing: str) -> str:
        """How to get one."""
        if not self.url.startswith("postgresql"):
            return "install the driver that the URL names"
        # What a bare postgresql:// means to SQLAlchemy depends on its version; the extra installs psycopg.
        other = missing not in ("psycopg", "its driver")
        return "pip install 'loralign[postgresql]'" + " and begin the URL with postgresql+psycopg://" * other

    def _alone(self) -> AbstractContextManager[Any]:
        file = self.url.removeprefix("sqlite:///")
        return FileLock(f"{file}.lock") if file != self.url and Path(file).parent.is_dir() else nullcontext()


def _again_after_a_race(act: Callable[[], T]) -> T:
    """Open what several workers may be making at once, in a database that was empty until now.

    Nothing keeps workers apart while each makes the tables that it found missing on a server, which refuses all but the
    first with a duplicate key or a table that exists already. Those find everything there when they look again.
    """
    for pause in _PAUSES:
        try:
            return act()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if not _raced(error):
                raise
            time.sleep(pause)
    return act()


def _raced(error: Exception) -> bool:
    """Whether a database may have refused something because another worker was quicker."""
    # Optuna wraps the errors of sessions; some databases have no class of their own for a table that exists.
    causes = (error, error.__cause__)
    return any(isinstance(one, (IntegrityError, ProgrammingError)) or "already exists" in str(one) for one in causes)


def _unusable(error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot be used: {one_line(error)}", place="--storage", fix="give a URL such as sqlite:///trials.db"
    )


def one_line(error: Exception) -> str:
    """What a database complains of, without the address of SQLAlchemy's explanation."""
    return " ".join(str(error).split()).partition(" (Background")[0]
