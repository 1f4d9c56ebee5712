"""Logs of one JSON object a line, such as ``geometry.jsonl``, appended as training goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loralign.errors import OutputError
from loralign.files import write_text


class RecordLog:
    """Appends records to a file; a resumed run first drops what lies beyond its checkpoint.

    Args:
        path: the file, or ``None`` to write nothing (all processes but the first).
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and hand it to the operating system, so that a killed run keeps what it has logged.

        Raises:
            OutputError: the file system refused the write, as a full disk does.
        """
        if self.path is None:
            return
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(
                f"cannot write: {error.strerror or error}",
                place=str(self.path),
                fix="free some space and resume from the last checkpoint",
            ) from error

    def truncate(self, steps: int) -> None:
        """Keep the records of the first ``steps`` optimiser steps; a cut-off last line goes too.

        What was done before the first step (recorded as step −1) is done again by a run that begins at step 0.
        """
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and record.get("step", -1) < steps and steps > 0:
                kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))
