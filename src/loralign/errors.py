"""One hierarchy for every fault that a user can cause and mend.

The command line prints the message of a :class:`LoralignError` in one line and exits with status 2; anything else that
escapes is a defect of the library. A message names the value, the place where it stands and the fix.
"""

from __future__ import annotations


class LoralignError(Exception):
    """Base class of all errors that loralign raises on purpose.

    Args:
        problem: what is wrong, with the offending value.
        place: where it stands, such as ``data.jsonl:12`` or ``recipe.yaml: learning_rate``.
        fix: what to do about it.
    """

    def __init__(self, problem: str, *, place: str | None = None, fix: str | None = None) -> None:
        self.problem = problem
        self.place = place
        self.fix = fix
        super().__init__(problem, place, fix)

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        how = f" ({self.fix})" if self.fix else ""
        return " ".join(f"{where}{self.problem}{how}".split())


class DataError(LoralignError):
    """Preference data, prompts or labels that cannot be used as they are."""


class ModelError(LoralignError):
    """A model, tokenizer or base checkpoint that cannot be found or loaded."""


class AdapterError(LoralignError):
    """An adapter whose layers, weights or base do not fit."""


class ConfigError(LoralignError):
    """A setting, recipe key or flag that is unknown or has an impossible value."""


class OutputError(LoralignError):
    """An output place that must not be overwritten or cannot be written."""


class NonFiniteError(LoralignError):
    """A loss or gradient that became infinite or not a number during training."""


class StateError(LoralignError):
    """A saved state that is of another version, of another run or damaged."""


class ServerError(LoralignError):
    """A chat server that cannot be reached, refuses a request or answers with something else than a completion."""
