"""What an experiment found: tables with intervals, charts, and one Parquet file with every number behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.parquet import write_columns
from loralign.experiments.experiment import ArmResult
from loralign.experiments.outcomes import difference, estimate, measure, ordered, over_seeds, value
from loralign.files import write_text
from loralign.report.experiment import ExperimentPage, experiment_markdown, render_experiment
from loralign.report.format import significant
from loralign.report.theme import Chart, Table
from loralign.report.trade import Axis, TradePoint, trade_chart

RESULTS, TABLE, PAGE = "results.parquet", "results.md", "index.html"
COLUMNS = ("arm", "measure", "seeds", "samples", "value", "low", "high", "lowest_seed", "highest_seed")


@dataclass(frozen=True)
class ArmScore:
    """One measure of one arm: the mean over seeds with its 95 % interval over samples, and how far seeds differ.

    Attributes:
        arm: its name.
        measure: key of the measure.
        seeds: how many.
        samples: how many of one seed.
        value: mean over seeds, with its interval.
        lowest: seed with the lowest value.
        highest: seed with the highest.
    """

    arm: str
    measure: str
    seeds: int
    samples: int
    value: Estimate
    lowest: float
    highest: float

    def row(self) -> tuple[Any, ...]:
        """As :data:`COLUMNS`."""
        mean = self.value
        return (
            self.arm,
            self.measure,
            self.seeds,
            self.samples,
            mean.value,
            mean.low,
            mean.high,
            self.lowest,
            self.highest,
        )


@dataclass(frozen=True)
class Finding:
    """An experiment's outcome.

    Attributes:
        page: what is shown.
        columns: of the Parquet file.
    """

    page: ExperimentPage
    columns: Mapping[str, Sequence[Any]] = field(repr=False)

    def write(self, directory: Path) -> None:
        """Write ``results.parquet``, ``results.md`` and ``index.html``, each whole or not at all.

        Raises:
            OutputError: the file system refused the write.
        """
        write_columns(directory / RESULTS, self.columns)
        write_text(directory / TABLE, experiment_markdown(self.page))
        render_experiment(self.page, directory / PAGE)

    def told(self, command: Sequence[str], settings: Mapping[str, Any]) -> Finding:
        """The same with what repeats it."""
        return replace(self, page=replace(self.page, command=list(command), settings=dict(settings)))


def arm_scores(results: Sequence[ArmResult]) -> list[ArmScore]:
    """Every measure that all seeds of an arm have, arm by arm."""
    found = []
    for result in results:
        for one in ordered(result.keys):
            samples = over_seeds(result.outcomes, one.key)
            if samples is None:
                continue
            single = [value(outcome[one.key]) for outcome in result.outcomes]
            found.append(
                ArmScore(
                    arm=result.arm.name,
                    measure=one.key,
                    seeds=len(result.outcomes),
                    samples=sum(sample.size for sample in result.outcomes[0][one.key]),
                    value=estimate(samples),
                    lowest=min(single),
                    highest=max(single),
                )
            )
    return found


def difference_to(results: Sequence[ArmResult], reference: str, key: str) -> dict[str, Estimate]:
    """Every arm's paired difference to the reference arm in one measure, by arm, where it can be paired."""
    known = {result.arm.name: over_seeds(result.outcomes, key) for result in results if result.outcomes}
    before = known.get(reference)
    found = {}
    for name, after in known.items():
        if name != reference and before is not None and after is not None:
            paired = difference(after, before)
            if paired is not None:
                found[name] = estimate(paired)
    return found


def score_columns(scores: Sequence[ArmScore]) -> dict[str, list[Any]]:
    """As columns of a Parquet file."""
    rows = [one.row() for one in scores]
    return {name: [row[index] for row in rows] for index, name in enumerate(COLUMNS)}


def score_table(scores: Sequence[ArmScore], first: str = "arm") -> Table:
    """Arms by measures, each value with its interval."""
    arms = list(dict.fromkeys(one.arm for one in scores))
    keys = ordered({one.measure for one in scores})
    known = {(one.arm, one.measure): one for one in scores}
    seeds = {one.arm: one.seeds for one in scores}
    rows = tuple(
        (
            arm,
            str(seeds[arm]),
            *(estimate_text(known[arm, one.key].value) if (arm, one.key) in known else "" for one in keys),
        )
        for arm in arms
    )
    return Table((first, "seeds", *(one.title for one in keys)), rows)


def difference_table(results: Sequence[ArmResult], reference: str) -> Table | None:
    """Every arm's paired differences to the reference arm; ``None`` where there is nothing to compare."""
    keys = ordered({key for result in results for key in result.keys})
    found = {one.key: difference_to(results, reference, one.key) for one in keys}
    keys = [one for one in keys if found[one.key]]
    arms = [result.arm.name for result in results if any(result.arm.name in found[one.key] for one in keys)]
    if not arms:
        return None
    rows = tuple(
        (arm, *(estimate_text(found[one.key][arm], sign=True) if arm in found[one.key] else "" for one in keys))
        for arm in arms
    )
    return Table((f"arm minus {reference}", *(one.title for one in keys)), rows)


def estimate_text(found: Estimate, *, sign: bool = False) -> str:
    """``0.512 [0.431, 0.593]``."""
    plus = "+" if sign and found.value > 0 else ""
    return f"{plus}{significant(found.value)} [{significant(found.low)}, {significant(found.high)}]"


def failure_notes(results: Sequence[ArmResult]) -> list[str]:
    """A sentence for every cell that failed."""
    return [
        f"{result.arm.name}, seed {seed}, failed: {reason}"
        for result in results
        for seed, reason in result.failures.items()
    ]


def trade(scores: Sequence[ArmScore], across: str, up: str, *, number: int = 0) -> Chart | None:
    """Two measures against each other, one point for each arm, with the Pareto front; ``None`` below two points."""
    known = {(one.arm, one.measure): one.value for one in scores}
    points = [
        TradePoint(arm, _ends(known[arm, across]), _ends(known[arm, up]))
        for arm in dict.fromkeys(one.arm for one in scores)
        if (arm, across) in known and (arm, up) in known
    ]
    if len(points) < 2:
        return None
    axes = (Axis(one.title, one.higher) for one in (measure(across), measure(up)))
    return trade_chart(points, *axes, key=f"trade-{number}")


def _ends(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high
