"""Which model a directory speaks of, so that what several of them say of one model comes together.

A subject is the path of an adapter, or else of a model, cut into its components. What one run calls
``runs/plain/adapter`` another may know by its absolute path: two subjects are the same where one ends with the other.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from loralign.files import exists

Subject = tuple[str, ...]

_GENERIC = frozenset({"adapter", "final", "last", "merged", "model", "output", "start"})
"""Names that many directories have; one of them alone does not tell a subject."""


def subject(name: str) -> Subject:
    """Return the subject of a path or of a hub name; a path that exists is made absolute."""
    if exists(name):
        return Path(name).expanduser().resolve().parts
    return tuple(part for part in PurePath(name).parts if part != ".") or (name,)


def same(first: Iterable[Subject], second: Iterable[Subject]) -> bool:
    """Say whether two sets of subjects speak of one model."""
    others = list(second)
    return any(_ends_with(*sorted((one, other), key=len)) for one in first for other in others)


def _ends_with(short: Subject, long: Subject) -> bool:
    if short == long:
        return True
    return long[-len(short) :] == short and (len(short) > 1 or short[0].lower() not in _GENERIC)


def subject_name(one: Subject) -> str:
    """Return how a subject is called: its last component that says something."""
    telling = [part for part in one if part.lower() not in _GENERIC and part not in (os.sep, "..")]
    return telling[-1] if telling else one[-1]


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names with a number behind those that came before: ``plain``, ``plain (2)``."""
    seen: Counter[str] = Counter()
    found: list[str] = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
