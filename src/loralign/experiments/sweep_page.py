"""What a sweep found: its front, hypervolume and recommended point, as tables, a chart and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.experiment import ArmResult
from loralign.experiments.facts import ONE_SEED, cell_facts, interval_note, most_seeds
from loralign.experiments.finding import (
    ArmScore,
    Finding,
    arm_scores,
    axes,
    estimate_text,
    failure_notes,
    nothing_finished,
    score_columns,
    score_table,
    trade,
    trade_points,
)
from loralign.experiments.hypervolume import Pair, hypervolume, reference_point
from loralign.experiments.outcomes import LEGEND, measure
from loralign.experiments.search import value_text
from loralign.experiments.search_plan import SearchPlan
from loralign.experiments.selection import Known, Limit, best_within, estimates, nearest
from loralign.report.experiment import ExperimentPage
from loralign.report.format import significant
from loralign.report.theme import Table
from loralign.report.trade import trade_front


def swept(
    title: str, results: Sequence[ArmResult], plan: SearchPlan, limits: Sequence[Limit], reference: Pair | None = None
) -> Finding:
    """The trials' front, hypervolume and recommended point as tables and a chart.

    A trial with a failed seed is left out of all of them and named in the remarks.

    Args:
        title: of the page.
        results: of :func:`~loralign.experiments.search.run_search`.
        plan: of the same.
        limits: that the recommended point keeps to; without one nothing is recommended.
        reference: of the hypervolume.

    Raises:
        ConfigError: no trial has both measures.
    """
    whole = [result for result in results if result.outcomes and not result.failures]
    scores = arm_scores(whole)
    known = {arm: one for arm, one in estimates(scores).items() if all(key in one for key in plan.measures)}
    if not known:
        raise nothing_finished(results, title, "no trial has finished")
    best = _front(known, plan.measures)
    chosen = best_within(known, limits, plan.measures[1]) if limits else None
    volume, at = _volume(known, plan.measures, reference)
    chart = trade(scores, *plan.measures)
    page = ExperimentPage(
        title=title,
        headline=_headline(known, limits, chosen, plan.measures, best)
        + (f" {ONE_SEED}" if most_seeds(whole) < 2 else ""),
        facts=_facts(results, whole, plan, (volume, at)),
        tables=[
            ("Pareto front", _front_table(whole, known, best, chosen, plan, limits)),
            ("All trials", score_table(scores, "trial")),
        ],
        charts=[] if chart is None else [chart],
        notes=[
            *_use(whole, chosen),
            *failure_notes(results),
            *_remarks(whole, plan, at, stated=bool(reference)),
            LEGEND,
        ],
    )
    return Finding(page, _columns(scores, whole, best, chosen))


def _front(known: Known, keys: tuple[str, str]) -> list[str]:
    """The arms that no other one beats in both, the one that keeps most first."""
    points, (across, up) = trade_points(known, *keys), axes(*keys)
    edge = [points[index].name for index in trade_front(points, across, up)]
    return edge[::-1] if across.higher else edge


def _volume(known: Known, keys: tuple[str, str], reference: Pair | None) -> tuple[float, Pair]:
    points = [(one[keys[0]].value, one[keys[1]].value) for one in known.values()]
    higher = (measure(keys[0]).higher, measure(keys[1]).higher)
    at = reference or reference_point(points, higher)
    return hypervolume(points, at, higher=higher), at


def _headline(
    known: Known, limits: Sequence[Limit], chosen: str | None, keys: tuple[str, str], best: Sequence[str]
) -> str:
    told = " and ".join(map(str, limits))
    if chosen is not None:
        values = dict.fromkeys([keys[1], *(one.measure for one in limits), keys[0]])
        text = ", ".join(f"{measure(key).title} {estimate_text(known[chosen][key])}" for key in values)
        unsure = [one for one in limits if _reaches(known[chosen][one.measure], one)]
        doubt = f"; the interval of {' and '.join(measure(one.measure).title for one in unsure)} reaches beyond"
        return f"Recommended within {told}: trial {chosen}, with {text}{doubt if unsure else ''}."
    if limits:
        closest = nearest(known, limits)
        near = "" if closest is None else f" Nearest is trial {closest}, with {_broken(known[closest], limits)}."
        return f"No trial keeps to {told}, so none is recommended.{near}"
    return (
        f"{len(best)} of {len(known)} trials {'is' if len(best) == 1 else 'are'} on the front of "
        f"{measure(keys[0]).title} and {measure(keys[1]).title}. With a --budget of drift or a share to --keep, one of "
        "them is recommended."
    )


def _broken(values: Mapping[str, Estimate], limits: Sequence[Limit]) -> str:
    """What it has of the measures whose limits it does not keep."""
    beyond = [one.measure for one in limits if one.excess(values[one.measure].value) > 0]
    return " and ".join(f"{measure(key).title} {estimate_text(values[key])}" for key in beyond)


def _reaches(found: Estimate, limit: Limit) -> bool:
    """Whether the interval holds values beyond the limit."""
    return max(limit.excess(found.low), limit.excess(found.high)) > 0


def _facts(
    results: Sequence[ArmResult], whole: Sequence[ArmResult], plan: SearchPlan, volume: tuple[float, Pair]
) -> list[tuple[str, str]]:
    area, at = volume
    return [
        ("Trials", f"{len(whole)} of {len(results)}" if len(whole) < len(results) else str(len(results))),
        ("Sampler", plan.sampler),
        ("Hypervolume", f"{significant(area)} beyond ({significant(at[0])}, {significant(at[1])})"),
        *cell_facts(results),
    ]


def _front_table(
    whole: Sequence[ArmResult],
    known: Known,
    best: Sequence[str],
    chosen: str | None,
    plan: SearchPlan,
    limits: Sequence[Limit],
) -> Table:
    """The front with its settings and values, and below it what is recommended where another measure decided that."""
    settings = {result.arm.name: result.arm.overrides for result in whole}
    fields = [one.name for one in plan.space]
    keys = list(dict.fromkeys([*plan.measures, *(one.measure for one in limits)]))
    rows = tuple(
        (
            arm.partition(":")[0],
            *(value_text(settings[arm][name]) for name in fields),
            *(estimate_text(known[arm][key]) if key in known[arm] else "" for key in keys),
            "yes" if arm in best else "no",
            "yes" if arm == chosen else "no",
        )
        for arm in dict.fromkeys([*best, *([chosen] if chosen else [])])
    )
    return Table(("trial", *fields, *(measure(key).title for key in keys), "on the front", "recommended"), rows)


def _use(whole: Sequence[ArmResult], chosen: str | None) -> list[str]:
    if chosen is None:
        return []
    overrides = next(result.arm.overrides for result in whole if result.arm.name == chosen)
    return ["To use it: " + " ".join(f"--{name} {one}" for name, one in overrides.items())]


def _remarks(whole: Sequence[ArmResult], plan: SearchPlan, at: Pair, *, stated: bool) -> list[str]:
    titles = [measure(key).title for key in plan.measures]
    origin = "was stated" if stated else "is 0 where more is better and the worst trial's value where less is"
    return [
        f"The hypervolume is the area of {titles[0]} × {titles[1]} between the front and the reference point "
        f"({significant(at[0])}, {significant(at[1])}), which {origin}.",
        "The front and the recommendation go by means over seeds. The best of many trials is flattered: confirm it "
        "with seeds that took no part in the search.",
        interval_note(whole),
    ]


def _columns(
    scores: Sequence[ArmScore], whole: Sequence[ArmResult], best: Sequence[str], chosen: str | None
) -> dict[str, list[Any]]:
    """Columns of the scores, the trials' settings, and what they were found to be."""
    settings = {result.arm.name: result.arm.overrides for result in whole}
    columns = score_columns(scores)
    for name in next(iter(settings.values())):
        columns[name] = [settings[one.arm][name] for one in scores]
    columns["front"] = ["yes" if one.arm in best else "no" for one in scores]
    columns["recommended"] = ["yes" if one.arm == chosen else "no" for one in scores]
    return columns
