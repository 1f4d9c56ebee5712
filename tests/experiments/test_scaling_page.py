"""What is told of the fitted law: the headline, its doubts, notes, chart and numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loralign.errors import ConfigError
from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.experiment import Arm, ArmResult
from loralign.experiments.finding import RESULTS
from loralign.experiments.forgetting_intervals import estimate_law
from loralign.experiments.scaling import (
    GUARDED,
    PLAIN,
    ScalingArm,
    ScalingCell,
    fit_scaling,
)
from loralign.experiments.scaling_page import RATIO, scaling_finding
from loralign.report.forgetting import ForgettingCurve, forgetting_chart
from tests.experiments.made_up import records

RESAMPLES = 120
SIZES = {"small": 1_000_000, "large": 10_000_000}


def cells(
    *,
    guarded: float = 0.5,
    sizes: dict[str, int] = SIZES,
    passes: float = 0.5,
    sign: int = 1,
    wobble: float = 0.01,
    groups: tuple[str, ...] = (PLAIN, GUARDED),
    amounts: tuple[int, ...] = (10, 20, 40, 80),
    offset: float = 0.0,
) -> list[ScalingCell]:
    """Runs that forget ``0.01 √D`` for a million parameters and half of that for each four times as many."""
    found = []
    for model, size in sizes.items():
        for group in groups:
            for number, steps in enumerate(amounts):
                share = guarded if group == GUARDED else 1.0
                value = (
                    sign * share * 0.01 * (8 * steps) ** 0.5 * (size / 1e6) ** -0.5 * (1 + wobble * (-1) ** number)
                    + offset
                )
                known = (
                    Estimate(value, 0.9 * value, 1.1 * value) if sign > 0 else Estimate(value, 1.1 * value, 0.9 * value)
                )
                arm = ScalingArm(model, group, steps, {})
                found.append(
                    ScalingCell(arm, 0, size, 8 * steps, passes, 2.0, 2.0 + value, known, 1, 0, "of both models")
                )
    return found


def results(found: list[ScalingCell]) -> list[ArmResult]:
    return [ArmResult(Arm(cell.arm.name), records(0, 1), ({}, {})) for cell in found]


def test_the_ratio_of_a_is_that_of_the_runs(tmp_path: Path) -> None:
    found = cells()
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert set(fits.known) == {"shared", "plain", "guarded"}
    shared = fits.known["shared"].parameter(RATIO)
    assert shared.value == pytest.approx(0.5, rel=1e-3)
    assert shared.low <= 0.5 + 1e-6
    assert shared.high < 0.6
    finding = scaling_finding(results(found), found, fits)
    assert not any("samples itself" in note for note in finding.page.notes)
    own = scaling_finding(results(found), found, fits, own=True).page.notes
    assert any("samples itself, 96 tokens a sample" in note for note in own)
    assert "their A is 0.500 [" in finding.page.headline
    assert "nothing is settled" not in finding.page.headline
    (chart,) = finding.page.charts
    # A line and its runs for every model and arm.
    assert len(chart.figure.data) == 8
    assert any("slope through two points" in note for note in finding.page.notes)
    finding.write(tmp_path)
    columns = pq.read_table(tmp_path / RESULTS).to_pydict()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    runs = [row for row in rows if row["kind"] == "run"]
    assert [row["value"] for row in runs] == pytest.approx([cell.forgetting.value for cell in found])
    assert all(abs(row["fitted"] - row["value"]) < 0.05 * row["value"] for row in runs)
    (ratio,) = [row for row in rows if row["measure"] == RATIO]
    assert (ratio["kind"], ratio["arm"], ratio["value"], ratio["samples"]) == ("parameter", "shared", shared.value, 16)


def test_runs_of_one_seed_settle_nothing_and_three_of_them_have_no_interval() -> None:
    found = cells()
    one = [ArmResult(Arm(cell.arm.name), records(0), ({},)) for cell in found]
    page = scaling_finding(one, found, fit_scaling(found, resamples=RESAMPLES)).page
    assert page.headline.endswith("One seed, so nothing is settled.")
    # No other choice of three amounts tells all parameters, so that resamples would all be the runs themselves.
    three = [cell for cell in cells(sizes={"small": 10**6}, wobble=0.1) if cell.arm.steps < 80]
    fits = fit_scaling(three, resamples=2000)
    assert fits.known["shared"].resamples > 100
    assert math.isnan(fits.known["shared"].parameter(RATIO).low)
    assert "too few runs for an interval" in scaling_finding(results(three), three, fits).page.headline


def test_equal_arms_settle_nothing() -> None:
    found = cells(guarded=1.0)
    # Were all the same there would be nothing to be unsure of.
    moved = [replace(cell, after=cell.after + 0.01 * (-1) ** index * (index % 3)) for index, cell in enumerate(found)]
    assert (
        "nothing is settled"
        in scaling_finding(results(moved), moved, fit_scaling(moved, resamples=RESAMPLES)).page.headline
    )


def test_a_law_that_the_runs_do_not_determine_settles_nothing() -> None:
    # From nothing to much in one step is steeper than any exponent of the search.
    found = [replace(cell, after=cell.before + (1.0 if cell.arm.steps == 80 else 1e-6)) for cell in cells()]
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert fits.known["shared"].fit.bounded
    page = scaling_finding(results(found), found, fits).page
    assert "do not determine the law, so nothing is settled" in page.headline
    assert any(note.startswith("shared: an exponent") for note in page.notes)


def test_runs_that_forget_nothing_are_told_without_a_law() -> None:
    found = cells(sign=-1)
    finding = scaling_finding(results(found), found, fit_scaling(found, resamples=RESAMPLES))
    assert finding.page.headline.startswith("No law is fitted: no run has forgotten anything")
    assert finding.page.charts == []
    assert [title for title, _ in finding.page.tables] == ["Runs", "Arms"]
    assert not any("two points" in note for note in finding.page.notes)


def test_a_guard_that_forgets_nothing_leaves_the_law_of_the_plain_runs() -> None:
    plain = cells(groups=(PLAIN,))
    kept = [
        replace(
            cell, arm=replace(cell.arm, group=GUARDED), after=cell.before - 0.001, forgetting=Estimate(-0.001, -1, 1)
        )
        for cell in plain
    ]
    fits = fit_scaling([*plain, *kept], resamples=RESAMPLES)
    assert set(fits.reasons) == {"guarded"}
    assert fits.known["shared"].parameter(RATIO).value == pytest.approx(0, abs=0.02)
    notes = scaling_finding(results(plain), [*plain, *kept], fits).page.notes
    assert any(note.startswith("No law is fitted for guarded") for note in notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": {"small": SIZES["small"]}}, "With one size α cannot be fitted"),
        ({"passes": 1.5}, "Runs of 10, 20, 40, 80 steps went through their training data more than once"),
        ({"amounts": (10, 20)}, "With two amounts E cannot be told"),
    ],
)
def test_what_must_be_known_to_read_the_numbers_is_said(changes: dict[str, Any], words: str) -> None:
    found, plain = cells(**changes), cells()
    notes = scaling_finding(results(found), found, fit_scaling(found, resamples=RESAMPLES)).page.notes
    assert any(words in note for note in notes)
    assert not any(
        words in note
        for note in scaling_finding(results(plain), plain, fit_scaling(plain, resamples=RESAMPLES)).page.notes
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": None}, "Runs do not say how many processes they had: D_ft and passes are of one process"),
        ({"warmup": 3}, "from zero in 3 of the 10 steps of the shortest runs, but in 3 of 80 of the longest"),
        ({"tokenizer": None}, "Whether these models share a tokenizer is not known"),
    ],
)
def test_what_the_cells_say_of_their_runs_is_told(changes: dict[str, Any], words: str) -> None:
    found = cells()
    fits = fit_scaling(found, resamples=RESAMPLES)
    changed = [replace(cell, **changes) for cell in found]
    assert any(words in note for note in scaling_finding(results(found), changed, fits).page.notes)
    assert not any(words in note for note in scaling_finding(results(found), found, fits).page.notes)


def test_nats_of_other_tokens_are_not_compared_in_silence() -> None:
    def said(found: list[ScalingCell]) -> bool:
        notes = scaling_finding(results(found), found, fit_scaling(found, resamples=10)).page.notes
        return any("a token is not the same share of the text" in note for note in notes)

    one, two = cells(sizes={"small": SIZES["small"]}), cells()
    assert said([replace(cell, tokenizer=cell.arm.model) for cell in two])
    assert not said(two)
    # Of one model there is nothing to compare.
    assert not said([replace(cell, tokenizer=None) for cell in one])


def test_a_warm_up_that_is_the_same_share_of_all_runs_is_not_remarked() -> None:
    found = [replace(cell, warmup=3 * cell.arm.steps // 10) for cell in cells()]
    notes = scaling_finding(results(found), found, fit_scaling(found, resamples=10)).page.notes
    assert not any("rises from zero" in note for note in notes)


def test_with_e_the_headline_tells_what_is_forgotten_from_a() -> None:
    found = cells(guarded=0.2, offset=0.1, wobble=0.001)
    fits = fit_scaling(found, resamples=RESAMPLES)
    fit, headline = fits.known["shared"].fit, scaling_finding(results(found), found, fits).page.headline
    assert fit.offset == pytest.approx(0.1, rel=0.05)
    forgotten = (fit.amplitudes[GUARDED] + fit.offset) / (fit.amplitudes[PLAIN] + fit.offset)
    assert forgotten > 0.6
    assert headline.startswith(f"At the middle of the data guarded runs forget {forgotten:.3f} [")
    assert "and their A is 0.2" in headline
    assert "(β, α and E shared, R² 1.00)." in headline
    # Where E is taken as 0 both are one.
    two = cells(amounts=(10, 20))
    told = scaling_finding(results(two), two, fit_scaling(two, resamples=RESAMPLES)).page.headline
    assert told.startswith("Guarded runs forget 0.500 times what plain ones do (ratio of A, β and α shared")


def test_one_arm_without_an_interval_says_so() -> None:
    few = cells(groups=(PLAIN,), sizes={"small": 10**6}, amounts=(10, 20))
    found = [replace(cell, seed=seed, after=cell.after + 0.001 * seed) for cell in few for seed in (0, 1)]
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert math.isnan(fits.known[PLAIN].parameter("β").low)
    page = scaling_finding(results(found), found, fits).page
    assert page.headline.startswith("Forgetting grows with the data to the power β = ")
    assert page.headline.endswith(": too few runs for an interval, so nothing is settled.")
    assert not any("goes to the ends" in note for note in page.notes)


def test_plain_runs_that_forget_nothing_have_no_ratio_for_that_reason() -> None:
    guarded = cells(groups=(GUARDED,), guarded=1.0)
    kept = [
        replace(cell, arm=replace(cell.arm, group=PLAIN), after=cell.before - 0.001 * (1 + index % 3))
        for index, cell in enumerate(guarded)
    ]
    # The plain runs are what ratios are to, whichever comes first.
    fits = fit_scaling([*guarded, *kept], resamples=RESAMPLES)
    assert fits.known["shared"].parameter(RATIO).value == math.inf
    page = scaling_finding(results(guarded), [*guarded, *kept], fits).page
    assert page.headline.startswith("The A of plain runs is fitted as 0")
    assert "too few runs" not in page.headline
    (law,) = [table for title, table in page.tables if title == "Fitted law"]
    (text,) = [row[2] for row in law.rows if row[:2] == ("shared", RATIO)]
    assert text.startswith("∞ [")
    assert text.endswith("∞]")


def test_plain_runs_alone_have_an_exponent() -> None:
    found = cells(groups=(PLAIN,))
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert list(fits.known) == [PLAIN]
    assert fits.known[PLAIN].parameter("β").value == pytest.approx(0.5, abs=0.1)
    # Forgetting itself grows so only without E.
    assert "Forgetting, less E, grows" in scaling_finding(results(found), found, fits).page.headline
    assert "to the power β = " in scaling_finding(results(found), found, fits).page.headline


def test_nothing_finished_is_a_fault() -> None:
    failed = [ArmResult(Arm("plain, small, 10 steps"), (), (), {0: "out of memory"})]
    with pytest.raises(ConfigError, match="out of memory"):
        scaling_finding(failed, [], fit_scaling([]))


def test_the_chart_says_which_runs_logarithms_cannot_show() -> None:
    points = [(80.0, 0.1, 0.05, 0.15), (160.0, -0.01, -0.02, 0.01)]
    chart = forgetting_chart([ForgettingCurve("plain, <b>small</b>", 0, 0, points)])
    assert chart is not None
    assert "1 runs that forgot nothing are not drawn" in chart.note
    assert list(chart.figure.data[0].x) == [80.0]
    assert "<b>" not in chart.figure.data[0].name
    assert chart.table is not None
    assert len(chart.table.rows) == 2
    assert forgetting_chart([ForgettingCurve("plain", 0, 0, points[1:])]) is None


def test_resamples_keep_the_arms_of_a_seed_together() -> None:
    # Noise that both arms share cancels in their ratio, and would not if they were drawn apart.
    found = cells(wobble=0.3)
    runs = fit_scaling(found, resamples=RESAMPLES).known["shared"].runs
    together = estimate_law(runs, resamples=RESAMPLES).parameter(RATIO)
    apart = estimate_law([replace(run, unit=f"{run.unit} {run.group}") for run in runs], resamples=RESAMPLES).parameter(
        RATIO
    )
    assert together.high - together.low < 0.5 * (apart.high - apart.low)
