"""Child processes that run one function each and may be killed: fresh interpreters that share their imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed.elastic.utils.distributed import create_c10d_store

PATIENCE = 240.0
FAILED = 3


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # The server imports once what every child needs and runs nothing, so a fork of it has no threads to lose.
    context.set_forkserver_preload(["tests.integration.work"])
    return context


class Child:
    """A running function in a process of its own, its output in a file.

    Args:
        function: a module-level function.
        arguments: what it is called with.
        log: where its standard output and error go.
        environment: variables set before it runs.
        holds: something of this process that must live as long as the child.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *arguments: Any,
        log: Path,
        environment: dict[str, str] | None = None,
        holds: object = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.holds = holds
        # A daemon, so that one whose partner has failed does not outlive the tests.
        process: BaseProcess = _context().Process(
            target=_call, args=(function, arguments, str(log), dict(environment or {})), daemon=True
        )
        self.process = process
        process.start()

    def wait(self) -> None:
        """Wait for its end, which must be a good one."""
        code = self.exit_code()
        assert code == 0, f"the child ended with {code}:\n{self.log.read_text()[-6000:]}"

    def exit_code(self) -> int | None:
        """Wait for its end, whatever it is."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        self.process.close()
        return code

    def kill_at(self, reached: Path) -> None:
        """Send SIGKILL once the child says, by a file, that it stands where it is to die."""
        end = time.monotonic() + PATIENCE
        while not reached.exists():
            assert self.process.is_alive(), f"the child ended early:\n{self.log.read_text()[-6000:]}"
            assert time.monotonic() < end, f"the child never came to {reached.name}"
            time.sleep(0.01)
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL now."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.exit_code() == -signal.SIGKILL


def start_pair(function: Callable[..., None], *arguments: Any, log: Path) -> tuple[Child, Child]:
    """Run a function in two processes that find each other by the variables that torchrun sets."""
    # The meeting place is kept open here, as torchrun's agent does, so that nobody else can take its port meanwhile.
    store = create_c10d_store(is_server=True, server_addr="127.0.0.1", wait_for_workers=False)
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    first, second = (
        Child(
            function,
            *arguments,
            log=log.with_name(f"{log.name}-{rank}"),
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            holds=store,
        )
        for rank in range(2)
    )
    return first, second


def _call(function: Callable[..., None], arguments: tuple[Any, ...], log: str, environment: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
