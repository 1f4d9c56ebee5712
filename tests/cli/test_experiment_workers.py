"""What the commands of experiments say of their workers, and of how far they have come."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loralign.cli import experiment
from loralign.experiments.arguments import Nothing
from loralign.experiments.experiment import ExperimentOptions
from loralign.experiments.finding import Finding
from loralign.experiments.grid import Progress
from loralign.report.experiment import ExperimentPage
from tests.cli.guarding import QUICK, write_alignment, write_task

Act = Callable[[ExperimentOptions], None]
DONE = Progress(finished=2, failed=0, running=0, total=2)


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An experiment that does as told, with helpers that end with these statuses in place of ours."""
    data, kept = write_task(tmp_path / "task.jsonl"), write_alignment(tmp_path / "kept.jsonl")
    words = [str(model), "--data", str(data), "--alignment_data", str(kept), *QUICK, "--output", str(tmp_path / "out")]
    started = subprocess.Popen

    def run(act: Act, *ends: str) -> None:
        left = list(ends)

        def popen(command: list[str], **named: Any) -> subprocess.Popen[bytes]:
            return started(
                [sys.executable, "-c", f"import os, time; print('here', flush=True); {left.pop(0)}"], **named
            )

        def acted(recipe: Any, options: ExperimentOptions) -> Finding:
            act(options)
            return Finding(ExperimentPage("title", "All is found.", (), ()), {"arm": ["one"]})

        monkeypatch.setattr("loralign.cli.experiment.subprocess.Popen", popen)
        monkeypatch.setattr("torch.set_num_threads", lambda number: None)
        experiment.run_experiment("made up", Nothing, "adapt", [*words, "--workers", str(len(ends) + 1)], acted)

    return run


def test_a_worker_that_ends_with_a_fault_is_told_once_with_its_log_and_ends_nothing(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(options: ExperimentOptions) -> None:
        told, last = "", time.monotonic() + 60
        # As soon as it is seen, which may be hours before the end.
        while "worker 2" not in told:
            assert time.monotonic() < last
            options.tell(DONE)
            told += capsys.readouterr().err
        options.tell(DONE)
        print(told, file=sys.stderr)

    run(act, "pass", "os._exit(3)", "time.sleep(2); os.kill(os.getpid(), 9)")
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if line.startswith("worker")]
    assert [re.sub(r"see \S*/out/", "see ", line) for line in told] == [
        "worker 2 ended with status 3, see worker-2.log; the others do its work",
        "worker 3 ended with status -9, see worker-3.log; the others do its work",
    ]
    assert (tmp_path / "out" / "worker-2.log").read_text() == "here\n"
    assert "All is found." in printed.out


def test_workers_end_with_an_experiment_that_fails(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = tmp_path / "late"

    def act(options: ExperimentOptions) -> None:
        while not (tmp_path / "out" / "worker-1.log").read_text():
            time.sleep(0.01)
        raise ValueError("nothing fits")

    with pytest.raises(ValueError, match="nothing fits"):
        run(act, f"time.sleep(1); open({str(late)!r}, 'w')")
    time.sleep(1.5)
    assert not late.exists()
    assert "worker" not in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["cells", "trials"])
def test_progress_is_told_in_what_is_counted(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str], unit: str
) -> None:
    run(lambda options: options.tell(Progress(3, 1, 1, 5, unit=unit)))
    assert f"[3/5] {unit} finished, 1 failed\n" in capsys.readouterr().err
