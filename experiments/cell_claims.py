"""Cells of an experiment, shared out among workers on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(target: Path) -> Iterator[bool]:
    """Take a cell unless it is finished or another living worker has it; yields whether it was taken.

    Args:
        target: the file of the finished cell. The claim beside it holds the worker's process number, so that one that
            was killed leaves nothing that stays taken.
    """
    claim = target.with_suffix(".claim")
    if target.exists() or not _take(claim):
        yield False
        return
    try:
        yield True
    finally:
        claim.unlink()


def _take(claim: Path) -> bool:
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        owner = claim.read_text(encoding="utf-8")
        if not owner.isdigit() or _alive(int(owner)):
            return False
        claim.unlink(missing_ok=True)
        return _take(claim)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    return True


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
