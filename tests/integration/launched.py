"""The script that a launcher starts in every process: one run, read from a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.integration.work import Run, train


def main() -> None:
    fields = json.loads(Path(sys.argv[1]).read_text())
    train(Run(output=Path(fields.pop("output")), **fields))


if __name__ == "__main__":
    main()
