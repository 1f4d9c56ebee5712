"""A run that is killed in its middle, as a child process starts it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loralign.evaluation.responding import collect_responses
from loralign.evaluation.response_store import ResponseStore
from tests.evaluation.prompts import asked_prompts

SETTINGS = {"model": "capitals", "max_new_tokens": 4}


class Capitals:
    """Answers with the prompt in capitals, and stands still before the answer ``stop``."""

    name = "capitals"

    def __init__(self, stop: int | None = None, reached: Path | None = None) -> None:
        self.stop, self.reached = stop, reached
        self.asked: list[str] = []

    def respond(self, prompts: Sequence[Any], keep: Any) -> None:
        for index, prompt in enumerate(prompts):
            if index == self.stop and self.reached is not None:
                self.reached.touch()
                time.sleep(600)
            self.asked.append(prompt[-1]["content"])
            keep(index, self.asked[-1].upper())


def main(path: str, reached: str) -> None:
    store = ResponseStore(path, asked_prompts(), SETTINGS)
    collect_responses(Capitals(4, Path(reached)), store)


if __name__ == "__main__":
    os.umask(0o022)
    main(*sys.argv[1:])
