"""Cells under a launcher: what becomes of what was launched when its worker ends, and of the cell meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loralign.experiments import launching
from loralign.experiments.cell import Cell, base_settings, make_cell
from loralign.experiments.failure import CellFailed
from loralign.experiments.running import Launcher, run_cell
from loralign.experiments.store import CellStore

MADE_UP = Path(__file__).with_name("made_up_launcher.py")
PROGRAM = """
import signal, sys
from pathlib import Path
from loralign.experiments import launching, running
from loralign.experiments.cell import base_settings, make_cell
from loralign.experiments.store import CellStore

# However this was started.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
store, script, directory, *words = sys.argv[1:]
launching._ACCELERATE, launching._REST = (sys.executable, script, directory, "wait"), 0.2
cell = make_cell("adapt", base_settings("adapt", words), {"guard": "none"}, 0)
try:
    running.run_cell(CellStore(Path(store)), cell, running.Launcher(accelerate=()))
except KeyboardInterrupt:
    sys.exit(130)
"""


def cell_of(words: list[str]) -> Cell:
    return make_cell("adapt", base_settings("adapt", words), {"guard": "none"}, 0)


def until(condition: Callable[[], bool], worker: subprocess.Popen[bytes] | None = None) -> None:
    last = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < last
        assert worker is None or worker.poll() is None
        time.sleep(0.02)


def grows(file: Path) -> bool:
    before = file.stat().st_size
    time.sleep(0.5)
    return file.stat().st_size > before


@pytest.fixture
def launched(adapting: list[str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose launch trains."""
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), str(MADE_UP), str(tmp_path), *adapting]
    silent = subprocess.DEVNULL
    worker = subprocess.Popen(words, stdout=silent, stderr=silent, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until((tmp_path / "launches").exists, worker)
        yield worker
    finally:
        worker.kill()
        worker.wait()
        (tmp_path / "finish").touch()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_a_worker_has_launched_ends_with_it(
    launched: subprocess.Popen[bytes], adapting: list[str], tmp_path: Path, told: signal.Signals
) -> None:
    assert grows(tmp_path / "beats")
    launched.send_signal(told)
    # It ends of what it was told, as it would without a launch.
    assert launched.wait(timeout=60) == (130 if told == signal.SIGINT else -told)
    assert not grows(tmp_path / "beats")
    assert CellStore(tmp_path / "store").record(cell_of(adapting)) is None


def test_a_cell_whose_worker_was_killed_is_left_to_its_launch_until_that_has_ended(
    launched: subprocess.Popen[bytes],
    adapting: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    launched.kill()
    launched.wait()
    assert grows(tmp_path / "beats")
    monkeypatch.setattr(launching, "_ACCELERATE", (sys.executable, str(MADE_UP), str(tmp_path), "wait"))
    store, cell = CellStore(tmp_path / "store"), cell_of(adapting)
    with ThreadPoolExecutor(1) as other:
        record = other.submit(run_cell, store, cell, Launcher(accelerate=()))
        until(lambda: record.done() or "worker was killed" in caplog.text)
        assert grows(tmp_path / "beats")
        assert not record.done()
        (tmp_path / "finish").touch()
        assert record.result(timeout=60).finished
    # What it has trained is used.
    assert len((tmp_path / "launches").read_text().split()) == 1


def test_a_launch_that_fails_leaves_nobody_behind(
    adapting: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_ACCELERATE", (sys.executable, str(MADE_UP), str(tmp_path), "fail"))
    monkeypatch.setattr(launching, "_REST", 0.2)
    with pytest.raises(CellFailed, match="ended with status 3"):
        run_cell(CellStore(tmp_path / "store"), cell_of(adapting), Launcher(accelerate=()))
    assert not grows(tmp_path / "beats")
