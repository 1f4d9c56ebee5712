"""What an experiment found: tables with intervals, charts, and one Parquet file with every number behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loralign.errors import ConfigError
from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.parquet import write_columns
from loralign.experiments.experiment import ArmResult
from loralign.experiments.outcomes import measure, ordered
from loralign.experiments.seed_means import OverSeeds, SeedEstimate, avoided, compared, estimate, over_seeds, value
from loralign.files import write_text
from loralign.report.experiment import ExperimentPage, experiment_markdown, render_experiment
from loralign.report.format import listing
from loralign.report.intervals import interval
from loralign.report.records import Metric
from loralign.report.theme import Chart, Table
from loralign.report.trade import Axis, TradePoint, trade_chart

RESULTS, TABLE, PAGE = "results.parquet", "results.md", "index.html"
COLUMNS = ("arm", "measure", "reference", "seeds", "samples", "value", "low", "high", "lowest_seed", "highest_seed")
DRIFT, REDUCTION = "drift", "drift_reduction"


@dataclass(frozen=True)
class ArmScore:
    """One measure of one arm: the mean over seeds with its 95 % interval over seeds and samples, and the seeds' range.

    Attributes:
        arm: its name.
        measure: key of the measure.
        samples: how many of one seed.
        value: mean over seeds, with its interval.
        lowest: value of the seed with the lowest.
        highest: of that with the highest.
        reference: the arm that it is a difference to, over the seeds that both have; empty of the arm's own values.
    """

    arm: str
    measure: str
    samples: int
    value: SeedEstimate
    lowest: float
    highest: float
    reference: str = ""

    @classmethod
    def of(cls, arm: str, measure: str, found: OverSeeds, reference: str = "") -> ArmScore:
        """From what the seeds found."""
        single = [value(samples) for samples in found.single()]
        samples = sum(found.sizes[0])
        return cls(arm, measure, samples, estimate(found), min(single), max(single), reference)

    @property
    def seeds(self) -> int:
        """How many it is a mean of."""
        return self.value.seeds

    def row(self) -> tuple[Any, ...]:
        """As :data:`COLUMNS`."""
        mean = self.value
        return (
            self.arm,
            self.measure,
            self.reference,
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
            mean = over_seeds(result.outcomes, one.key, result.seeds)
            if mean is not None:
                found.append(ArmScore.of(result.arm.name, one.key, mean))
    return found


def difference_to(results: Sequence[ArmResult], reference: str, key: str) -> dict[str, ArmScore]:
    """Every arm's difference to the reference arm in one measure, by arm, seed by seed and sample by sample.

    Only seeds that both have are compared, so that none is set off against another; an arm with none in common with
    the reference, or with other samples, is left out. Of :data:`REDUCTION` it is ``1 − drift / drift of the
    reference`` instead.
    """
    before = next((result.units for result in results if result.arm.name == reference), {})
    found = {}
    for result in results:
        name = result.arm.name
        if name == reference:
            continue
        reduced = key == REDUCTION
        both = compared(result.units, before, DRIFT, avoided) if reduced else compared(result.units, before, key)
        if both is not None and not (reduced and value(both.before) <= 0):
            found[name] = ArmScore.of(name, key, both, reference)
    return found


def difference_scores(results: Sequence[ArmResult], reference: str) -> list[ArmScore]:
    """All of :func:`difference_to`, measure by measure, the reduction of drift among them."""
    keys = {key for result in results for key in result.keys}
    keys |= {REDUCTION} if DRIFT in keys else set()
    return [one for key in ordered(keys) for one in difference_to(results, reference, key.key).values()]


def lacking_notes(results: Sequence[ArmResult], reference: str) -> list[str]:
    """A sentence for every arm that lacks a seed of the reference, or has one that the reference lacks."""
    notes = []
    known = {result.arm.name: {seed for _, seed in result.units} for result in results if result.outcomes}
    own = known.get(reference, set())
    for name, seeds in known.items():
        if own and seeds != own:
            common = sorted(seeds & own)
            told = f"compared over seeds {listing([*map(str, common)], 20)} alone" if common else "not compared"
            lacks = [(name, own - seeds), (reference, seeds - own)]
            missing = [f"{arm} lacks {listing([*map(str, sorted(its))], 20)}" for arm, its in lacks if its]
            notes.append(f"{name} and {reference} are {told}: {'; '.join(missing)}.")
    return notes


def score_columns(scores: Sequence[ArmScore]) -> dict[str, list[Any]]:
    """As columns of a Parquet file."""
    rows = [one.row() for one in scores]
    return {name: [row[index] for row in rows] for index, name in enumerate(COLUMNS)}


def score_table(scores: Sequence[ArmScore], first: str = "arm", *, sign: bool = False) -> Table:
    """Arms by measures, each value with its interval."""
    arms = list(dict.fromkeys(one.arm for one in scores))
    keys = ordered({one.measure for one in scores})
    known = {(one.arm, one.measure): one for one in scores}
    seeds = {one.arm: one.seeds for one in scores}
    rows = tuple(
        (
            arm,
            str(seeds[arm]),
            *(estimate_text(known[arm, one.key].value, sign=sign) if (arm, one.key) in known else "" for one in keys),
        )
        for arm in arms
    )
    return Table((first, "seeds", *(one.title for one in keys)), rows)


def difference_table(scores: Sequence[ArmScore], reference: str) -> Table | None:
    """The scores of :func:`difference_scores` by arm and measure; ``None`` where there are none."""
    if not scores:
        return None
    return score_table(scores, f"arm minus {reference}", sign=True)


def estimate_text(found: Estimate, *, sign: bool = False) -> str:
    """``0.512 [0.431, 0.593]``."""
    plus = "+" if sign and found.value > 0 else ""
    return plus + interval(Metric(found.value, found.low, found.high))


def nothing_finished(results: Sequence[ArmResult], place: str, problem: str = "no cell has finished") -> ConfigError:
    """The fault of an experiment without anything to show, with the reasons."""
    reasons = "; ".join(failure_notes(results)) or "there are none"
    return ConfigError(f"{problem}: {reasons}", place=place, fix="mend that and repeat with --retry")


def failure_notes(results: Sequence[ArmResult]) -> list[str]:
    """A sentence for every cell that failed."""
    return [
        f"{result.arm.name}, seed {seed}, failed: {reason}"
        for result in results
        for seed, reason in result.failures.items()
    ]


def trade(scores: Sequence[ArmScore], across: str, up: str, *, number: int = 0) -> Chart | None:
    """Two measures against each other, one point for each arm, with the Pareto front; ``None`` below two points."""
    known: dict[str, dict[str, Estimate]] = {}
    for one in scores:
        known.setdefault(one.arm, {})[one.measure] = one.value
    points = trade_points(known, across, up)
    if len(points) < 2:
        return None
    return trade_chart(points, *axes(across, up), key=f"trade-{number}")


def trade_points(known: Mapping[str, Mapping[str, Estimate]], across: str, up: str) -> list[TradePoint]:
    """The arms that have both measures."""
    return [
        TradePoint(arm, *((one.value, one.low, one.high) for one in (values[across], values[up])))
        for arm, values in known.items()
        if across in values and up in values
    ]


def axes(across: str, up: str) -> tuple[Axis, Axis]:
    """Of two measures."""
    return Axis(measure(across).title, measure(across).higher), Axis(measure(up).title, measure(up).higher)
