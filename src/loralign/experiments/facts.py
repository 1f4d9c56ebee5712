"""What the pages of experiments say of their cells and seeds."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.experiments.experiment import ArmResult

ONE_SEED = "One seed, so nothing is settled."


def run_facts(results: Sequence[ArmResult]) -> list[tuple[str, str]]:
    """Arms, cells, seeds and the time that the cells took."""
    return [("Arms", str(len(results))), *cell_facts(results)]


def cell_facts(results: Sequence[ArmResult]) -> list[tuple[str, str]]:
    """The same without the number of arms."""
    seeds = sorted({seed for result in results for seed in result.seeds})
    return [
        ("Cells", str(sum(len(result.cells) for result in results))),
        ("Seeds", ", ".join(map(str, seeds)) or "none"),
        ("Time in cells", minutes(results)),
    ]


def minutes(results: Sequence[ArmResult]) -> str:
    """The time that the cells took."""
    return f"{sum(cell.seconds for result in results for cell in result.cells) / 60:.0f} min"


def most_seeds(results: Sequence[ArmResult]) -> int:
    """The number of seeds of the arm that has most."""
    return max((len(set(result.seeds)) for result in results), default=0)


def interval_note(results: Sequence[ArmResult]) -> str:
    """What the intervals of a page are over, and what they do not say."""
    if most_seeds(results) < 2:
        return (
            "One seed: the intervals, 95 %, are over samples and say nothing of how much a training varies, so that "
            "nothing is settled."
        )
    return (
        "Values are means over seeds. Intervals, 95 %, are by bootstrap over seeds and samples: a resample draws the "
        "samples, which the seeds share, and one seed fewer than there are. With two or three seeds they are still too "
        "narrow; what is called settled is so by Student's t over the seeds as well."
    )
