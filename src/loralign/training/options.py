"""Fields of the configurations, in TRL's manner: a default and a line of help."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A field with a default and a line of help."""
    return field(default=default, metadata={"help": text})
