"""Reading values from JSON that somebody else wrote: a value of the wrong type becomes "absent", never an exception."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

# Control characters (but tab and newline) and the bidirectional overrides that can make text read as something else.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def clean_text(text: str) -> str:
    """Return ``text`` as valid Unicode without control characters; each one replaced stays visible as ``⟨U+202E⟩``."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\r\n", "\n")
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", whole)


def parse(text: str) -> Any:
    """Parse JSON and clean every string and key in it.

    Raises:
        ValueError: not JSON, or nested deeper than Python can follow.
    """
    try:
        return _clean(json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_text(path: Path) -> str:
    """Return a file's text with bytes that are not UTF-8 replaced.

    Raises:
        OSError: the file is absent or cannot be read.
    """
    return path.read_text(encoding="utf-8", errors="replace")


def number(value: Any) -> float | None:
    """Return a finite number as a float, anything else as ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is, anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """Return a JSON array as it is, anything else as an empty one."""
    return value if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float | None]:
    """Return a JSON object's values as numbers, see :func:`number`."""
    return {key: number(item) for key, item in mapping(value).items()}


def strings(value: Any) -> tuple[str, ...]:
    """Return a JSON array's items as strings."""
    return tuple(str(item) for item in sequence(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value
