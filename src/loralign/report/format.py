"""How numbers are written for people: three significant digits, and ``n/a`` where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABSENT = "n/a"


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits, trailing zeros kept (``0.340``, ``12300``, ``1.20e-05``)."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if -4 <= exponent < 6:
        text = f"{round(value, digits - 1 - exponent):.{max(digits - 1 - exponent, 0)}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−", 1) if value < 0 else text


def percent(value: float | None, digits: int = 3) -> str:
    """Return a share as a percentage with ``digits`` significant digits."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 1:
        return "100\u00a0%"
    return f"{significant(100 * value, digits)}\u00a0%"


def whole_percent(value: float | None) -> str:
    """Return a share as a whole percentage, for running text."""
    return ABSENT if value is None or not math.isfinite(value) else f"{100 * value:.0f}\u00a0%"


def cosine_text(value: float) -> str:
    """Return a cosine with two decimals, for running text."""
    return f"{value:.2f}".replace("-", "−")


def count(value: float | None) -> str:
    """Return a whole number with thin spaces between thousands."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """Return seconds as ``42 s``, ``6 min 12 s`` or ``3 h 05 min``."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def listing(items: Sequence[str], most: int = 4) -> str:
    """Join names as ``a, b and c``; beyond ``most`` of them the rest is counted."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
