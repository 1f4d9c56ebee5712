"""What a guard's subspace depends on, and the settings that an experiment tries of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from loralign.errors import ConfigError
from loralign.guard.fisher_options import FisherOptions

Value = int | str
FACTORS = ("rank", "sketch", "samples", "projection")
ORDERED = FACTORS[:3]
"""Those whose values have an order."""

# More outputs than any layer whose Fisher matrix is summed whole.
_WIDE = 10**9


@dataclass(frozen=True)
class Factors:
    """Values to try.

    Attributes:
        rank: directions of every layer.
        sketch: columns of a sketch beyond the largest rank.
        samples: must-survive samples that the subspace is estimated from.
        projection: ``hard`` or ``soft``.

    Raises:
        ConfigError: a value is out of range, or given twice.
    """

    rank: Sequence[int] = (8, 16, 32, 64, 128)
    sketch: Sequence[int] = (32, 64, 128)
    samples: Sequence[int] = (24, 48, 96, 192)
    projection: Sequence[str] = ("hard", "soft")

    def __post_init__(self) -> None:
        for name, flag, least in (
            ("rank", "ranks", 1),
            ("sketch", "sketches", 0),
            ("samples", "fisher_sample_counts", 2),
        ):
            for value in self.of(name):
                if int(value) < least:
                    raise ConfigError(f"{value} is too small", place=f"--{flag}", fix=f"use at least {least}")
        for value in self.projection:
            if value not in ("hard", "soft"):
                raise ConfigError(f"{value!r} is unknown", place="--projections", fix="use hard or soft")
        for name in FACTORS:
            if len(set(self.of(name))) < len(self.of(name)):
                raise ConfigError(f"{list(self.of(name))} repeat a value", place=name, fix="give each once")

    def of(self, factor: str) -> Sequence[Value]:
        """The values of a factor, those that have an order in it."""
        values: Sequence[Value] = getattr(self, factor)
        return sorted(values) if factor in ORDERED else values


@dataclass(frozen=True)
class Setting:
    """One subspace and the way it is held; ``None`` leaves a factor as the recipe has it."""

    rank: int | None = None
    sketch: int | None = None
    samples: int | None = None
    projection: str | None = None

    @property
    def name(self) -> str:
        """What differs from the recipe."""
        named = [f"{factor} {getattr(self, factor)}" for factor in self.varied]
        return ", ".join(named) or "recipe"

    @property
    def varied(self) -> list[str]:
        """The factors that differ."""
        return [one.name for one in fields(self) if getattr(self, one.name) is not None]


def own_setting(base: Mapping[str, Any]) -> Setting:
    """The recipe's own values; its ranks are chosen by energy, so that there is no one number."""
    width, rank = FisherOptions().sketch_width(_WIDE), FisherOptions().largest_rank
    return Setting(None, (width or rank) - rank, int(base["fisher_samples"]), str(base["guard_projection"]))


def settings(factors: Factors, own: Setting, *, full_grid: bool = False) -> list[Setting]:
    """The recipe's own setting and every other value of one factor at a time; or every combination of all values.

    Args:
        factors: the values; a factor without any stays as the recipe has it.
        own: of :func:`own_setting`; a value that is the recipe's own is no other setting.
        full_grid: all combinations.
    """
    if full_grid:
        return [Setting(*values) for values in product(*(factors.of(factor) or (None,) for factor in FACTORS))]  # type: ignore[arg-type]
    others = [
        replace(Setting(), **{factor: value})  # type: ignore[arg-type]
        for factor in FACTORS
        for value in factors.of(factor)
        if value != getattr(own, factor)
    ]
    return [Setting(), *others]


def settings_with(chosen: Sequence[Setting], own: Setting, factor: str, value: Value) -> list[Setting]:
    """Those settings that tell what one value of a factor does.

    One factor at a time, the one in which all else is as in the recipe; in a full grid all that have the value, the
    mean over which is its main effect.
    """
    having = [one for one in chosen if value == getattr(own if getattr(one, factor) is None else one, factor)]
    alone = [one for one in having if set(one.varied) <= {factor}]
    return alone or having
