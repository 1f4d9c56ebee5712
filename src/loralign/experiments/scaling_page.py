"""What the runs of ``loralign scaling`` found: the fitted law, its fit to every run, and how arms compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from loralign.experiments.cell import CellSettings
from loralign.experiments.experiment import ArmResult, ExperimentOptions
from loralign.experiments.facts import ONE_SEED, most_seeds, run_facts
from loralign.experiments.finding import (
    COLUMNS,
    ArmScore,
    Finding,
    arm_scores,
    estimate_text,
    failure_notes,
    nothing_finished,
    score_table,
)
from loralign.experiments.forgetting_intervals import LawEstimate, Parameter, forgetting_name, ratio_name
from loralign.experiments.forgetting_law import ALPHA_BOUNDS, BETA_BOUNDS
from loralign.experiments.outcomes import LEGEND
from loralign.experiments.own_text import OWN, OWN_TOKENS
from loralign.experiments.scaling import (
    GUARDED,
    PLAIN,
    SHARED,
    ScalingCell,
    ScalingFits,
    ScalingPlan,
    fit_scaling,
    run_scaling,
)
from loralign.report.experiment import ExperimentPage
from loralign.report.forgetting import ForgettingCurve, forgetting_chart
from loralign.report.format import count, listing, significant
from loralign.report.theme import Table

RATIO = ratio_name(GUARDED, PLAIN)
FORGETTING = forgetting_name(GUARDED, PLAIN)

_LAW = (
    "The law is L_pt = L⁰_pt + A · D_ft^β / N^α + E in nats per token: L_pt the loss on text that the start knew, a "
    "mean over samples, L⁰_pt that of the start, measured; D_ft the samples seen, steps × batch × accumulation × "
    "processes, every amount a run of its own; N all parameters of the base; A, E ≥ 0. a is A · D_ft^β / N^α at the "
    "middle of the runs, in nats per token. A has the units of D_ft^−β N^α, so that A of fits with "
    "other exponents compare to nothing: the ratio is that of the fit whose arms share β, α and E. It is not the ratio "
    "of what the arms forget unless E is 0: that is (a + E) of the one by (a + E) of the other, at the middle of the "
    "runs."
)
_INTERVALS = (
    "Brackets are 95 % intervals by bootstrap over runs, the plain and the guarded one of an amount and a seed "
    "together, within each size, widened for few of such units. Amounts of one seed count as independent, and what "
    "other text would have said is not in them. Standard errors are from the curvature at the fit, n/a where a "
    "parameter lies on a bound or cannot be told from another; they count runs of a unit as independent. Runs count "
    "alike, so those that forget most decide most."
)
_TWO_SIZES = (
    "Two sizes give α a slope through two points: no residual shows whether the law holds in N, and the interval knows "
    "of runs only, not of how models differ beside their size. A, whose unit goes with α, is no better known."
)
_ONE_SIZE = "With one size α cannot be fitted: it is 0, N is left out, and A has the units of D_ft^−β."
_TOKENIZERS = (
    "{fault}: a token is not the same share of the text for each, so that nats per token of one model cannot be set "
    "against those of another, and α holds that difference too."
)
_OWN_TEXT = (
    f"The text is what each start samples itself, {OWN_TOKENS} tokens a sample: the rise of the loss on it estimates "
    "KL(start‖now) per token. Models have texts of their own, so that α holds that difference too."
)
_TWO_AMOUNTS = "With two amounts E cannot be told from A and is taken as 0."
_LARGEST_WARMUP = 0.25
"""Share of the shortest runs' steps."""


def scaling(base: CellSettings, options: ExperimentOptions, plan: ScalingPlan) -> Finding:
    """Adapt models of several sizes to several amounts of data, plain and guarded, and fit the forgetting law.

    Args:
        base: recipe of ``loralign adapt``; with ``guard: none`` there are plain runs only.
        options: seeds, places, measures.
        plan: amounts, models, text.

    Raises:
        LoralignError: any fault of recipe, text, models or plan; every cell failed.
    """
    results, cells = run_scaling(base, options, plan)
    return scaling_finding(results, cells, fit_scaling(cells), own=plan.text == (OWN,))


def scaling_finding(
    results: Sequence[ArmResult], cells: Sequence[ScalingCell], fits: ScalingFits, *, own: bool = False
) -> Finding:
    """Parameters, quality of the fits, runs with residuals, and arms by all measures.

    Args:
        results: of all arms.
        cells: those that have finished.
        fits: of the law to them.
        own: the text is what each start sampled itself.

    Raises:
        ConfigError: no cell finished.
    """
    scores = arm_scores(results)
    if not cells:
        raise nothing_finished(results, "scaling")
    main = _main(fits)
    chart = forgetting_chart(_curves(cells, main))
    tables = [("Runs", _run_table(cells, main)), ("Arms", score_table(scores))]
    if fits.known:
        tables[:0] = [("Fitted law", _parameter_table(fits)), ("Quality of the fits", _quality_table(fits))]
    page = ExperimentPage(
        title="scaling",
        headline=headline(fits) + (f" {ONE_SEED}" if fits.known and most_seeds(results) < 2 else ""),
        facts=run_facts(results),
        tables=tables,
        charts=[] if chart is None else [chart],
        notes=[
            *failure_notes(results),
            *_remarks(cells, fits),
            *([_OWN_TEXT] if own else []),
            _LAW,
            *([_INTERVALS] if fits.known else []),
            LEGEND,
        ],
    )
    return Finding(page, _columns(scores, cells, fits))


def headline(fits: ScalingFits) -> str:
    """How guarded runs forget to plain ones, and whether that is settled; without two arms the exponent of the amount.

    Where E is fitted the ratio of A is not that of what is forgotten, so that both are said.
    """
    main = _main(fits)
    if main is None:
        return f"No law is fitted: {'; '.join(dict.fromkeys(fits.reasons.values()))}."
    if RATIO not in (one.name for one in main.parameters):
        less = "" if "E" in main.fit.absent else ", less E,"
        return f"Forgetting{less} grows with the data to the power β = {_text(main.parameter('β'))}{_doubt(main)}."
    ratio = main.parameter(RATIO)
    if not math.isfinite(ratio.value):
        return "The A of plain runs is fitted as 0, so there is no ratio to it and nothing is settled."
    shared = [name for name in ("β", "α", "E") if name not in main.fit.absent]
    fit = f"{listing(shared)} shared, R² {significant(main.fit.r_squared)}"
    if "E" in main.fit.absent:
        text = f"Guarded runs forget {_text(ratio)} times what plain ones do (ratio of A, {fit})"
        return f"{text}{_doubt(main, ratio)}."
    whole = main.parameter(FORGETTING)
    return (
        f"At the middle of the data guarded runs forget {_text(whole)} times what plain ones do, and their A is "
        f"{_text(ratio)} times that of plain ones ({fit}){_doubt(main, ratio, whole)}."
    )


def _doubt(main: LawEstimate, *ratios: Parameter) -> str:
    """Why nothing is settled, for the end of a sentence; empty where something is."""
    if not main.has_intervals or any(math.isnan(one.low) for one in ratios):
        return ": too few runs for an interval, so nothing is settled"
    if main.loose:
        return ": but the runs do not determine the law, so nothing is settled"
    if not all(one.high < 1 or one.low > 1 for one in ratios):
        return f": {'the' if len(ratios) == 1 else 'an'} interval holds 1, so nothing is settled"
    return ""


def _main(fits: ScalingFits) -> LawEstimate | None:
    """The fit of all runs, or that of the only arm."""
    if SHARED in fits.known or SHARED in fits.reasons:
        return fits.known.get(SHARED)
    return next(iter(fits.known.values()), None)


def _parameter_table(fits: ScalingFits) -> Table:
    rows = [
        (name, one.name, _text(one), significant(one.standard_error))
        for name, found in fits.known.items()
        for one in found.parameters
    ]
    return Table(("fit", "parameter", "value", "standard error"), tuple(rows))


def _quality_table(fits: ScalingFits) -> Table:
    rows = [
        (
            name,
            str(len(found.runs)),
            str(found.units),
            str(found.fit.free),
            significant(found.fit.r_squared),
            significant(found.fit.error),
            str(found.resamples),
        )
        for name, found in fits.known.items()
    ]
    return Table(
        ("fit", "runs", "units", "parameters", "R²", "root mean squared residual", "resamples fitted"), tuple(rows)
    )


def _run_table(cells: Sequence[ScalingCell], main: LawEstimate | None) -> Table:
    fitted = _fitted(cells, main)
    rows = tuple(
        (
            cell.arm.name,
            str(cell.seed),
            count(cell.size),
            count(cell.amount),
            significant(cell.passes),
            significant(cell.before, 4),
            significant(cell.after, 4),
            estimate_text(cell.forgetting, sign=True),
            *(() if value is None else (significant(value), significant(cell.forgetting.value - value))),
        )
        for cell, value in zip(cells, fitted, strict=True)
    )
    headings = ("run", "seed", "N", "D_ft", "passes", "L⁰_pt", "L_pt", "forgetting")
    return Table(headings if main is None else (*headings, "fitted", "residual"), rows)


def _fitted(cells: Sequence[ScalingCell], main: LawEstimate | None) -> list[float | None]:
    if main is None:
        return [None] * len(cells)
    return [float(main.fit.increment(cell.arm.group, cell.amount, cell.size)) for cell in cells]


def _curves(cells: Sequence[ScalingCell], main: LawEstimate | None) -> list[ForgettingCurve]:
    models = list(dict.fromkeys(cell.arm.model for cell in cells))
    groups = list(dict.fromkeys(cell.arm.group for cell in cells))
    found = []
    for shape, model in enumerate(models):
        for group in groups:
            own = [cell for cell in cells if (cell.arm.model, cell.arm.group) == (model, group)]
            if not own:
                continue
            amounts = np.geomspace(min(cell.amount for cell in own), max(cell.amount for cell in own), 60)
            law = [] if main is None else main.fit.increment(group, amounts, own[0].size).tolist()
            points = [(cell.amount, cell.forgetting.value, cell.forgetting.low, cell.forgetting.high) for cell in own]
            pairs = list(zip(amounts.tolist(), law, strict=True)) if law else []
            found.append(ForgettingCurve(f"{group}, {model}", groups.index(group), shape, points, pairs))
    return found


def _remarks(cells: Sequence[ScalingCell], fits: ScalingFits) -> Iterator[str]:
    for reason in dict.fromkeys(fits.reasons.values()):
        names = [name for name, other in fits.reasons.items() if other == reason]
        yield f"No law is fitted for {listing(names)}: {reason}."
    for name, found in fits.known.items():
        fit = found.fit
        if found.loose:
            yield (
                f"{name}: an exponent or its interval goes to the ends of its search (β {BETA_BOUNDS[0]} to "
                f"{BETA_BOUNDS[1]}, α {ALPHA_BOUNDS[0]} to {ALPHA_BOUNDS[1]}): these runs do not determine the law."
            )
        if len(found.runs) == fit.free:
            yield f"{name}: as many parameters as runs, so that it fits whatever they found."
    absent = {name for found in fits.known.values() for name in found.fit.absent}
    if "α" in absent:
        yield _ONE_SIZE
    elif fits.known and len({cell.size for cell in cells}) == 2:
        yield _TWO_SIZES
    if "E" in absent:
        yield _TWO_AMOUNTS
    yield from _amount_remarks(cells)
    models = {cell.arm.model for cell in cells}
    tokenizers = {cell.tokenizer for cell in cells}
    if len(models) > 1 and (len(tokenizers) > 1 or None in tokenizers):
        unknown = "Whether these models share a tokenizer is not known, and where they do not"
        yield _TOKENIZERS.format(fault=unknown if None in tokenizers else "These models have different tokenizers")


def _amount_remarks(cells: Sequence[ScalingCell]) -> Iterator[str]:
    """What D_ft does not say of the samples that it counts."""
    if any(cell.processes is None for cell in cells):
        yield (
            "Runs do not say how many processes they had: D_ft and passes are of one process, and too small by that "
            "number where there were several."
        )
    repeated = sorted({cell.arm.steps for cell in cells if cell.passes > 1})
    if repeated:
        yield (
            f"Runs of {', '.join(map(str, repeated))} steps went through their training data more than once: D_ft "
            "counts samples seen, which the law takes as new ones. Give more --data."
        )
    short, long = (end(cells, key=lambda cell: cell.arm.steps) for end in (min, max))
    shares = [cell.warmup / cell.arm.steps for cell in (short, long)]
    if shares[0] > max(_LARGEST_WARMUP, shares[1]):
        yield (
            f"The learning rate rises from zero in {short.warmup} of the {short.arm.steps} steps of the shortest runs, "
            f"but in {long.warmup} of {long.arm.steps} of the longest: D_ft counts samples that hardly trained, and "
            "β comes out too large. Give larger --amounts or a smaller --warmup_steps."
        )


def _columns(scores: Sequence[ArmScore], cells: Sequence[ScalingCell], fits: ScalingFits) -> dict[str, list[Any]]:
    """Arms, runs and parameters of every fit as one table, told apart by the column ``kind``."""
    rows: list[dict[str, Any]] = [{"kind": "arm", **dict(zip(COLUMNS, one.row(), strict=True))} for one in scores]
    for cell, value in zip(cells, _fitted(cells, _main(fits)), strict=True):
        own = {"seed": cell.seed, "size": cell.size, "amount": cell.amount, "fitted": value, "start": cell.before}
        rows.append({"kind": "run", "arm": cell.arm.name, "measure": "forgetting", **own, **vars(cell.forgetting)})
    for name, found in fits.known.items():
        for one in found.parameters:
            numbers = {key: getattr(one, key) for key in ("value", "low", "high", "standard_error")}
            rows.append({"kind": "parameter", "arm": name, "measure": one.name, "samples": len(found.runs), **numbers})
    names = ("kind", *COLUMNS, "standard_error", "seed", "size", "amount", "start", "fitted")
    return {name: [row.get(name) for row in rows] for name in names}


def _text(found: Parameter) -> str:
    if math.isnan(found.low):
        return _number(found.value)
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"


def _number(value: float) -> str:
    return "∞" if value == math.inf else significant(value)
