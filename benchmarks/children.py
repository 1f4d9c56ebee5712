"""Running a measurement in a process of its own, so that no arm inherits another's peak of memory."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Child = Callable[[str, argparse.Namespace, Connection], None]


def in_child(child: Child, arm: str, arguments: argparse.Namespace) -> Any:
    """What ``child(arm, arguments, sender)`` sends from a fresh process.

    Raises:
        RuntimeError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(arm, arguments, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process of arm {arm!r} ended with code {process.exitcode}") from None
    process.join()
    return found
