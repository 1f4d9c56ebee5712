"""Search spaces: which recipe fields vary, as lists of values or as ranges of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from optuna.trial import Trial

from loralign.errors import ConfigError

Value = str | int | float
Point = dict[str, Value]
"""A value for every field of a space."""

# A power differs in its last bits from machine to machine, which would make another cell of the same point.
_DIGITS = 12


@dataclass(frozen=True)
class Choices:
    """A field that takes one of several values.

    Attributes:
        name: of the field.
        values: as typed, or points of a range.
    """

    name: str
    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that the recipe must accept: all."""
        return self.values

    def suggest(self, trial: Trial) -> Value:
        """The trial's value."""
        return cast("Value", trial.suggest_categorical(self.name, list(self.values)))

    def listed(self) -> Choices:
        """As a list of values."""
        return self


@dataclass(frozen=True)
class Range:
    """A field that takes a number between two ends, both included.

    Attributes:
        name: of the field.
        low: end.
        high: other end.
        whole: takes whole numbers only.
        log: evenly on a logarithmic scale.
        count: points that a grid takes of it.
    """

    name: str
    low: float
    high: float
    whole: bool = False
    log: bool = False
    count: int | None = None

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that the recipe must accept."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def suggest(self, trial: Trial) -> Value:
        """The trial's value."""
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def listed(self) -> Choices:
        """As a list of evenly spaced values.

        Raises:
            ConfigError: the range has no number of points.
        """
        if self.count is None:
            raise ConfigError(
                f"{self.name} is a range without a number of points, which a grid needs",
                place="--space",
                fix=f"write {self.name}={self.low:g}:{self.high:g}{':log' if self.log else ''}:4, or search with tpe",
            )
        space = np.geomspace if self.log else np.linspace
        values = [float(f"{one:.{_DIGITS}g}") for one in space(self.low, self.high, self.count)]
        return Choices(self.name, tuple(dict.fromkeys(map(round, values)) if self.whole else values))


Parameter = Choices | Range


def grid_points(space: Sequence[Parameter]) -> list[Point]:
    """Every combination of the fields' values, the last field varying fastest.

    Raises:
        ConfigError: a range without a number of points.
    """
    listed = [one.listed() for one in space]
    names = [one.name for one in listed]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(one.values for one in listed))]
