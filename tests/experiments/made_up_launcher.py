"""In place of accelerate's: python made_up_launcher.py DIRECTORY HOW … RECIPE.

Its child trains: it writes to a file until it is told to finish, and heeds no signal that can be left unheeded. The
launcher waits for that, or fails at once where it is told to.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml


def launch(directory: Path, how: str, recipe: str) -> int:
    child = subprocess.Popen([sys.executable, __file__, str(directory), "train", recipe])
    while not (directory / "beats").exists():
        time.sleep(0.01)
    with (directory / "launches").open("a") as file:
        file.write(f"{child.pid}\n")
    return 3 if how == "fail" else child.wait()


def train(directory: Path, run: Path) -> None:
    for ignored in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    # Nothing is left running where a test fails.
    last = time.monotonic() + 120
    while not (directory / "finish").exists() and time.monotonic() < last:
        with (directory / "beats").open("a") as file:
            file.write(".")
        time.sleep(0.02)
    (run / "adapter").mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text('{"status": "finished"}')


if __name__ == "__main__":
    here, words = Path(sys.argv[1]), sys.argv[2:]
    if words[0] == "train":
        train(here, Path(yaml.safe_load(Path(words[-1]).read_text())["output_dir"]))
    else:
        sys.exit(launch(here, words[0], words[-1]))
