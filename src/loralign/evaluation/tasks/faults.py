"""What a failure of lm-evaluation-harness means for the user, in one line that names the task."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

from loralign.errors import ConfigError, DataError, LoralignError

_ABSENT = (ConnectionError, httpx.TransportError, DatasetNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled)
_TOO_LONG = re.compile(r"max tokens to generate \((\d+)\).*maximum sequence length \((\d+)\)")


def explain(error: Exception, task: str) -> LoralignError:
    """The error to raise in place of one that the harness or a library below it raised."""
    place = f"task {task}"
    causes = list(_causes(error))
    text = next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return DataError("the hub gives its data only to those who accepted their terms", place=place, fix="log in")
    if any(isinstance(cause, _ABSENT) for cause in causes):
        return DataError(
            "its data are not here and the hub cannot be reached",
            place=place,
            fix="connect once, after which they are kept; SST-2, GSM8K and MMLU can also be local files",
        )
    missing = next((cause for cause in causes if isinstance(cause, ImportError)), None)
    if missing is not None:
        return ConfigError(
            f"it needs a package that is not installed: {missing.name or missing}",
            place=place,
            fix="install it, see the harness's notes on the task",
        )
    if "marked as unsafe" in text:
        return runs_code(task)
    too_long = _TOO_LONG.search(text)
    if too_long is not None:
        return ConfigError(
            f"answers of {too_long[1]} tokens leave no room for a prompt in the model's {too_long[2]} positions",
            place=place,
            fix="lower max_new_tokens",
        )
    return ConfigError(f"the harness cannot run it: {text}", place=place, fix="check the task's settings and data")


def runs_code(task: str) -> ConfigError:
    """The error for a task whose answers are programs to be run."""
    return ConfigError(
        "it runs code that the model writes, which is never done here", place=f"task {task}", fix="leave it out"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
