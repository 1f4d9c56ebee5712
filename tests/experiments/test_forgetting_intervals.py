from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from loralign.errors import DataError
from loralign.experiments.forgetting_intervals import (
    degrees,
    estimate_law,
    forgetting_name,
    ratio_name,
    widened,
    widening,
)
from loralign.experiments.forgetting_law import ForgettingRun, fit_law

RATIO = ratio_name("guarded", "plain")
FORGETTING = forgetting_name("guarded", "plain")
AMOUNTS = (80.0, 160.0, 320.0, 640.0)


def pairs(
    *,
    a: dict[str, float] | None = None,
    beta: float = 0.6,
    offset: float = 0.0,
    amounts: tuple[float, ...] = AMOUNTS,
    sizes: tuple[float, ...] = (1e6,),
    seeds: int = 2,
    shared: float = 0.05,
    own: float = 0.005,
    seed: int = 0,
) -> list[ForgettingRun]:
    """Runs that obey the law, with normal noise (nats per token) that both arms of a seed share and a little beside."""
    generator = np.random.default_rng(seed)
    middle = math.exp(float(np.mean(np.log(amounts))))
    found = []
    for size in sizes:
        for amount in amounts:
            for number in range(seeds):
                common = shared * float(generator.normal())
                for group, value in (a or {"plain": 1.0, "guarded": 0.5}).items():
                    forgotten = value * (amount / middle) ** beta + offset + common + own * float(generator.normal())
                    found.append(ForgettingRun(group, size, amount, forgotten, f"{amount} {number}"))
    return found


def test_a_pair_is_one_witness_and_its_ratio_needs_no_level_of_its_own() -> None:
    runs = pairs()
    assert degrees(runs) == (8, 3)
    assert widening(*degrees(runs)) == pytest.approx(1.66, abs=0.005)
    apart = [replace(run, unit="") for run in runs]
    assert degrees(apart) == (16, 4)
    assert widening(*degrees(apart)) == pytest.approx(1.28, abs=0.005)
    # Without its partner a run tells the arms apart by itself.
    assert degrees(runs[1:]) == (8, 4)
    # Units of two sizes are others, though they are called alike.
    assert degrees(pairs(sizes=(1e6, 1e7))) == (16, 4)
    assert degrees(pairs(amounts=AMOUNTS[:2])) == (4, 2)
    assert degrees([run for run in runs if run.group == "plain"]) == (8, 3)
    assert math.isnan(widening(3, 3))


def test_intervals_hold_the_truth_though_the_arms_share_their_noise() -> None:
    true = {"β": 0.6, RATIO: 0.5}
    held: dict[str, list[bool]] = {name: [] for name in true}
    by_runs: dict[str, list[bool]] = {name: [] for name in true}
    for seed in range(35):
        runs = pairs(amounts=(80.0, 160.0, 640.0), seed=seed)
        # Of which three in four have all amounts.
        estimate = estimate_law(runs, resamples=145)
        narrower = widening(len(runs), estimate.fit.free) / widening(*degrees(runs))
        for name, value in true.items():
            found = estimate.parameter(name)
            held[name].append(found.low <= value <= found.high)
            low, high = (widened(name, found.value, end, narrower) for end in (found.low, found.high))
            by_runs[name].append(low <= value <= high)
    assert {name: np.mean(one) >= 0.9 for name, one in held.items()} == dict.fromkeys(true, True)
    # What counting runs in place of pairs gives.
    assert np.mean(by_runs[RATIO]) < 0.85


@pytest.mark.parametrize(
    ("name", "value", "end", "expected"),
    [
        ("β", 1.0, 1.5, 2.0),
        ("β", 1.0, 0.2, 0.01),
        ("E", 0.1, 0.02, 0.0),
        (RATIO, 0.5, 1.0, 2.0),
        (RATIO, 0.5, 0.0, 0.0),
        (RATIO, 0.5, math.inf, math.inf),
        # No forgetting with the guard: only a linear scale reaches further up.
        (RATIO, 0.0, 0.1, 0.2),
        (RATIO, 0.0, 0.0, 0.0),
        # None without it.
        (RATIO, math.inf, 4.0, 2.0),
        (RATIO, math.inf, math.inf, math.inf),
    ],
)
def test_ends_are_moved_away_from_the_value(name: str, value: float, end: float, expected: float) -> None:
    assert widened(name, value, end, 2.0) == pytest.approx(expected)
    assert math.isnan(widened(name, value, end, math.nan))
    assert math.isnan(widened(name, math.nan, end, 2.0))


def test_a_reference_that_forgets_nothing_has_an_infinite_ratio_with_an_interval() -> None:
    runs = pairs(a={"plain": 0.0, "guarded": 0.5}, shared=0.0, own=0.02)
    none = [replace(run, increment=-abs(run.increment)) if run.group == "plain" else run for run in runs]
    found = estimate_law(none, resamples=150).parameter(RATIO)
    assert (found.value, found.high) == (math.inf, math.inf)
    assert found.low > 1


def test_with_e_the_ratio_of_what_is_forgotten_is_not_that_of_a() -> None:
    runs = pairs(a={"plain": 0.1, "guarded": 0.02}, offset=0.1, shared=0.0, own=0.0)
    fit = fit_law(runs)
    assert fit.ratio("guarded", "plain") == pytest.approx(0.2, rel=1e-4)
    assert fit.forgetting_ratio("guarded", "plain") == pytest.approx(0.12 / 0.2, rel=1e-4)
    least = fit.forgetting_ratio("guarded", "plain", (AMOUNTS[0], 1e6))
    assert least == pytest.approx(runs[1].increment / runs[0].increment, rel=1e-4)
    estimate = estimate_law(runs, resamples=120)
    found = estimate.parameter(FORGETTING)
    # At the middle of all runs in every resample, which has another.
    assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6), rel=1e-3)
    # Where E is not fitted the ratio of A says it all.
    without = estimate_law(pairs(amounts=AMOUNTS[:2]), resamples=10)
    assert FORGETTING not in [one.name for one in without.parameters]


def test_a_law_without_intervals_is_not_called_determined() -> None:
    estimate = estimate_law(pairs(seeds=1), resamples=200)
    assert not estimate.has_intervals
    assert not estimate.determined
    assert not estimate.loose
    assert estimate.units == 4
    assert estimate_law(pairs(), resamples=150).determined


def test_a_search_that_does_not_end_is_a_failed_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn(columns: Any, increments: Any) -> Any:
        # Only resamples hold a run twice.
        if increments[0] == increments[1]:
            raise RuntimeError("Maximum number of iterations reached.")
        return nnls(columns, increments)

    runs = pairs()
    usual = estimate_law(runs, resamples=150).resamples
    monkeypatch.setattr("loralign.experiments.forgetting_law.nnls", stubborn)
    assert 100 < estimate_law(runs, resamples=150).resamples < usual
    with pytest.raises(DataError, match="amplitudes are not found: Maximum number"):
        fit_law([replace(run, increment=1.0) for run in runs])
