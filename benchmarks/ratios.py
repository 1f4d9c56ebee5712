"""Paired ratios of measurements, their spread, and the three ways in which a benchmark prints them."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one quantity over the repeats.

    Attributes:
        median: in the unit of the samples, as are the quartiles.
        lower: first quartile.
        upper: third quartile.
    """

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """One line of a benchmark's table.

    Attributes:
        name: what is divided by what.
        ratio: of the quotients taken repeat by repeat, in which a drift of the machine cancels.
        ratio_of_medians: quotient of the two medians, over all repeats.
        target: largest ratio wanted, or ``None`` where the line is there for information.
        repeats: number of pairs.
    """

    name: str
    ratio: Spread
    ratio_of_medians: float
    target: float | None
    repeats: int

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is within the target; ``None`` without one."""
        return None if self.target is None else self.ratio.median <= self.target


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles by linear interpolation; of a single sample, three times that sample.

    Raises:
        ValueError: no samples.
    """
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, lower, upper)


def compare(
    name: str, numerator: Sequence[float], denominator: Sequence[float], target: float | None = None
) -> Comparison:
    """Divide two series of the same unit, pair by pair.

    Args:
        name: of the line.
        numerator: one sample a repeat.
        denominator: the same number of samples, taken in the same repeats.
        target: largest ratio wanted.

    Raises:
        ValueError: the series are empty or differ in length.
    """
    quotients = [first / second for first, second in zip(numerator, denominator, strict=True)]
    medians = statistics.median(numerator) / statistics.median(denominator)
    return Comparison(name, spread(quotients), medians, target, len(quotients))


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--markdown``, which :func:`show` reads."""
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print everything that was measured as JSON")
    output.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def positive(text: str) -> int:
    """An integer of at least one, for argparse.

    Raises:
        ValueError: it is none, which argparse reports in one line.
    """
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def show(
    arguments: argparse.Namespace,
    rows: Sequence[Comparison],
    arms: Mapping[str, Sequence[float]],
    settings: dict[str, Any],
) -> None:
    """Print a benchmark's outcome.

    Args:
        arguments: with ``json`` and ``markdown``.
        rows: the table.
        arms: raw samples by arm.
        settings: machine, versions and sizes.
    """
    if arguments.json:
        document = {
            "settings": settings,
            "ratios": [{**asdict(row), "met": row.met} for row in rows],
            "arms": {name: {**asdict(spread(values)), "samples": list(values)} for name, values in arms.items()},
        }
        print(json.dumps(document, indent=2))
        return
    head = ("comparison", "ratio", "quartiles", "ratio of medians", "target", "met")
    cells = [head, *(_cells(row) for row in rows)]
    if arguments.markdown:
        cells.insert(1, ("---",) * len(head))
        print("\n".join("| " + " | ".join(line) + " |" for line in cells))
        return
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    unit = settings["unit"]
    for name, values in arms.items():
        one = spread(values)
        print(f"{name}: {one.median:.3f} {unit} ({one.lower:.3f} to {one.upper:.3f})")
    print("; ".join(f"{key} {value}" for key, value in settings.items()))


def _cells(row: Comparison) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.ratio.median:.3f}",
        f"{row.ratio.lower:.3f} to {row.ratio.upper:.3f}",
        f"{row.ratio_of_medians:.3f}",
        "" if row.target is None else f"at most {row.target:g}",
        {None: "", True: "yes", False: "no"}[row.met],
    )
