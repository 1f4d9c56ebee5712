"""Launching a cell's run under accelerate, in a process group of its own that nobody else's run can meet."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from loralign.errors import StateError

logger = logging.getLogger(__name__)

_LOG = "log.txt"
_ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
_POLL = 0.5
_GRACE = 40.0
"""Seconds that a launcher has to end its processes: torch's gives them 30 before it kills them."""
_REST = 5.0
"""Seconds that what a launcher leaves behind has to end."""


def launch(words: Sequence[str], place: Path) -> None:
    """Run a cell under accelerate, in processes that end with this one or keep others out until they have.

    Args:
        words: after ``accelerate launch``.
        place: the cell's directory, where the log goes.

    Raises:
        StateError: it failed; the command's own last line is the reason.
    """
    log = place / _LOG
    earlier = log.stat().st_size if log.exists() else 0
    code = _run_launcher([*_ACCELERATE, *words], place, log)
    if code:
        told = log.read_bytes()[earlier:].decode("utf-8", errors="replace")
        lines = [line.strip() for line in told.splitlines()]
        own = [line for line in lines if line.startswith("error:")] or [line for line in lines if line] or ["no output"]
        raise StateError(f"ended with status {code}: {own[-1]}", place=str(log), fix="see there")


def _run_launcher(command: Sequence[str], place: Path, log: Path) -> int:
    """Run to the end and return the status; if this process is interrupted or told to end, end all of it before.

    A process group of its own holds the launcher and what it starts, so that they can be ended together. It inherits
    the lock, which therefore stays taken while it lives, even where this process is killed without a warning.
    """
    with log.open("a", encoding="utf-8") as file, _launch_lock(place) as lock, _endings_put_off() as endings:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=(lock,),
        )
        try:
            while not endings:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL)
        finally:
            # A launch that went well may leave a logger's process, which sends what is left and ends by itself.
            if process.returncode != 0:
                _end_group(process)
        return process.returncode


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a launcher and all that it has started.

    Kindly first: the launcher of several processes gives each a group of its own, and ends them when it is told to.
    """
    try:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        last = time.monotonic() + _REST
        while _signal_group(process, 0) and time.monotonic() < last:
            time.sleep(0.05)
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether there was anybody left to be told."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        # macOS refuses to tell those that have ended and were not waited for.
        return False
    return True


@contextmanager
def _endings_put_off() -> Iterator[list[int]]:
    """Collect the signals that would end this process at once; after the block, the first of them does.

    Ctrl-C is no matter here, since it raises an error. A handler that somebody has set is left to its own ways.
    """
    endings: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # Python lets only the main thread handle signals.
    signals = [one for one in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(one) is signal.SIG_DFL]
    for one in signals:
        signal.signal(one, lambda number, frame: endings.append(number))
    try:
        yield endings
    finally:
        for one in signals:
            signal.signal(one, signal.SIG_DFL)
    if endings:
        signal.raise_signal(endings[0])


@contextmanager
def _launch_lock(place: Path) -> Iterator[int]:
    """Have the launching of a cell to oneself, and its lock as a descriptor that may be handed on.

    The store's own lock goes with its owner, whose launch may live on; this one is the system's plain lock of an open
    file, which is free only when everybody who has that file open has ended.
    """
    # Not there on Windows, where cells run in this process.
    import fcntl

    descriptor = os.open(_launch_file(place), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("a worker was killed whose training still goes on in %s; waiting until it has ended", place)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # Some file systems have no such locks; there, the store's lock is all there is.
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        yield descriptor
    finally:
        os.close(descriptor)


def await_launch(place: Path) -> None:
    """Wait until the launch that a killed worker has left behind has ended, if there is one."""
    if _launch_file(place).exists():
        with _launch_lock(place):
            pass


def _launch_file(place: Path) -> Path:
    return place.with_suffix(".launch.lock")
