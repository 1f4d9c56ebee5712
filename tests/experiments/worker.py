"""A worker in a process of its own: python -m tests.experiments.worker URL DIRECTORY [hang]."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from optuna.trial import Trial

from loralign.experiments.grid import Work
from loralign.experiments.storage import Storage

CELLS = [{"cell": f"c{number}"} for number in range(6)]


def main() -> None:
    """Work until all cells are done; the one that hangs writes down its first cell and sleeps."""
    url, directory, hangs = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] == ["hang"]

    def objective(trial: Trial) -> float:
        cell = trial.suggest_categorical("cell", [one["cell"] for one in CELLS])
        if hangs:
            (directory / "hanging").write_text(cell)
            time.sleep(600)
        # As a store of cells does: what is there is not done again.
        if not list(directory.glob(f"{cell}-*")):
            time.sleep(0.2)
            (directory / f"{cell}-{os.getpid()}-{time.monotonic_ns()}").touch()
        return 1.0

    Work("shared", Storage(url, heartbeat=1, grace=3)).run_all(CELLS, objective)


if __name__ == "__main__":
    main()
