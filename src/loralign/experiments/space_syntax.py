"""Search spaces as people write them: ``lambda_alignment=0.1:100:log lora_r=4:16 guard_projection=hard,soft``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_type_hints

from loralign.errors import ConfigError
from loralign.experiments.arguments import DECIDED
from loralign.experiments.cell import Command
from loralign.experiments.space import Choices, Parameter, Range
from loralign.runs.adapt_recipe import ADAPT
from loralign.runs.recipe import ALIGN

_FORMS = "write FIELD=a,b,c or FIELD=low:high, with :log and a number of points after it as needed"


def parse_space(command: Command, texts: Sequence[str]) -> tuple[Parameter, ...]:
    """Read a search space.

    ``FIELD=a,b,c`` lists values. ``FIELD=low:high`` is a range, of whole numbers where the field takes those; ``:log``
    spaces it logarithmically, and a number after it says how many points a grid takes of it.

    Args:
        command: whose recipe the fields are of.
        texts: a field each.

    Raises:
        ConfigError: there is no field; a text of another form; an unknown field, or one that cannot be searched; one
            field twice.
    """
    if not texts:
        raise ConfigError("no field varies", place="--space", fix=_FORMS)
    found = [_parameter(command, text) for text in texts]
    for index, one in enumerate(found):
        if one.name in [other.name for other in found[:index]]:
            raise ConfigError(f"{one.name} stands there twice", place=f"--space {texts[index]}", fix="keep one of them")
    return tuple(found)


def _parameter(command: Command, text: str) -> Parameter:
    name, equals, values = (part.strip() for part in text.partition("="))
    place = f"--space {text}"
    if not (name and equals and values):
        raise ConfigError("is not FIELD=VALUES", place=place, fix=_FORMS)
    hint = _hint(command, name, place)
    if "," in values:
        return Choices(name, _values(values, place))
    if ":" in values:
        return _range(name, values, _number(hint, name, place), place)
    raise ConfigError(f"{values} is a single value", place=place, fix=f"leave it out and give --{name} {values}")


def _hint(command: Command, name: str, place: str) -> Any:
    if name in DECIDED:
        raise ConfigError(f"{name} cannot be searched", place=place, fix=DECIDED[name])
    known = _hints(command)
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"see loralign {command} --help"
        raise ConfigError(f"{name} is no field of loralign {command}", place=place, fix=fix)
    return known[name]


@cache
def _hints(command: Command) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in (ALIGN if command == "align" else ADAPT).kinds:
        hints = get_type_hints(kind)
        found |= {one.name: hints[one.name] for one in fields(kind)}
    return found


def _number(hint: Any, name: str, place: str) -> type:
    for kind in (float, int):
        if kind is hint or kind in get_args(hint):
            return kind
    raise ConfigError(f"{name} takes no numbers, so it has no range", place=place, fix=f"write {name}=a,b")


def _values(text: str, place: str) -> tuple[str, ...]:
    values = tuple(part.strip() for part in text.split(","))
    if "" in values or len(set(values)) < len(values):
        raise ConfigError("holds an empty value or one twice", place=place, fix="write each once, as FIELD=a,b,c")
    return values


def _range(name: str, text: str, kind: type, place: str) -> Range:
    first, second, *rest = (part.strip() for part in text.split(":"))
    low, high = _end(first, kind, place), _end(second, kind, place)
    log = rest[:1] == ["log"]
    counts = rest[1:] if log else rest
    if len(counts) > 1 or not all(one.isdecimal() for one in counts):
        raise ConfigError(f"cannot read {':'.join(rest)!r} after the ends", place=place, fix=_FORMS)
    if not low < high:
        raise ConfigError(f"{first} is not below {second}", place=place, fix="write the smaller end first")
    if log and low <= 0:
        raise ConfigError(f"a logarithmic range cannot start at {first}", place=place, fix="start above 0, or drop log")
    count = int(counts[0]) if counts else None
    if count is not None and count < 2:
        raise ConfigError(f"{count} points do not hold both ends", place=place, fix="use at least 2")
    return Range(name, low, high, kind is int, log, count)


def _end(text: str, kind: type, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} is no number", place=place, fix=_FORMS)
    if kind is int and not value.is_integer():
        raise ConfigError(f"{text} is no whole number", place=place, fix="the field takes whole numbers only")
    return value
