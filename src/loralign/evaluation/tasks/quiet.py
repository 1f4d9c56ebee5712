"""What lm-evaluation-harness does to its surroundings while it works, kept away from the caller."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from transformers.utils import logging as transformers_logging

_HARNESS = "lm_eval"
# Standard errors by bootstrap would otherwise fork a process per core from one that holds a model.
_SINGLE = "DISABLE_MULTIPROC"
# The words of the harness for prompts that it cuts to the model's window.
_CUT = ("Left truncation applied", "exceeds model's maximum length")


class HarnessLog(logging.Handler):
    """Collects the harness's warnings and errors in place of printing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cut = False
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what matters: errors, and that prompts were cut."""
        text = record.getMessage()
        self.cut = self.cut or any(words in text for words in _CUT)
        if record.levelno >= logging.ERROR:
            self.errors.append(text)


@contextlib.contextmanager
def quietened(show_progress: bool) -> Iterator[HarnessLog]:
    """Collect the harness's log records, silence its libraries, and keep the standard output clean.

    Progress bars go to the error stream, or nowhere. Global random states are put back at the end: the harness seeds
    and draws from them.
    """
    log, logger = HarnessLog(), logging.getLogger(_HARNESS)
    level, propagate, verbosity = logger.level, logger.propagate, transformers_logging.get_verbosity()
    bars, single = is_progress_bar_enabled(), os.environ.get(_SINGLE)
    stream = sys.stderr if show_progress else io.StringIO()
    logger.addHandler(log)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    os.environ[_SINGLE] = "1"
    try:
        with (
            _random_states(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
        ):
            warnings.simplefilter("ignore")
            yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
        logger.propagate = propagate
        transformers_logging.set_verbosity(verbosity)
        if single is None:
            os.environ.pop(_SINGLE, None)
        if bars:
            enable_progress_bars()


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that the harness seeds
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
