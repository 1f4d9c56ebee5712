"""Names of objectives: which are allowed, and how many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loralign.errors import DataError

MAX_OBJECTIVES = 16
_LONGEST = 64


def check_objective_name(name: str, *, place: str) -> str:
    """Return the name if it can serve in logs, in reports and on the command line.

    Raises:
        DataError: it is empty, longer than 64 characters, or holds a comma, an equals sign, a control character or
            white space at an end.
    """
    fix = "rename the objective"
    if not name.strip():
        raise DataError("an objective has no name", place=place, fix=fix)
    if name != name.strip() or len(name) > _LONGEST:
        raise DataError(f"the objective {name[:80]!r} has white space at an end or is too long", place=place, fix=fix)
    if any(character in ",=" or not character.isprintable() for character in name):
        raise DataError(f"the objective {name!r} holds a comma, '=' or a control character", place=place, fix=fix)
    return name


def check_objective_list(names: Sequence[str], *, place: str = "objectives") -> tuple[str, ...]:
    """Return the names as a tuple if they are 1 to 16 different, usable ones.

    Raises:
        DataError: there is none or too many, one is named twice, or two differ only in their case.
    """
    seen: dict[str, str] = {}
    for name in names:
        check_objective_name(name, place=place)
        other = seen.get(name.casefold())
        if other is not None:
            problem = f"the objective {name!r} is named twice"
            if other != name:
                problem = f"the objectives {other!r} and {name!r} differ only in their case"
            raise DataError(problem, place=place, fix="name every objective once, always the same way")
        seen[name.casefold()] = name
    if not names:
        raise DataError("no objective is named", place=place, fix="name 1 to 16 objectives")
    if len(names) > MAX_OBJECTIVES:
        raise DataError(
            f"{len(names)} objectives, more than {MAX_OBJECTIVES}",
            place=place,
            fix="merge objectives; is the label column the right one?",
        )
    return tuple(names)


def merge_objectives(*groups: Iterable[str]) -> tuple[str, ...]:
    """All names in the order of their first appearance."""
    return tuple(dict.fromkeys(name for group in groups for name in group))
