from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loralign.evaluation.bootstrap import Estimate, Ratio
from loralign.experiments.experiment import Arm, ArmResult
from loralign.experiments.saturation import Changes, changes, differences, first_fall, saturation
from tests.experiments.made_up import records


def curve(*values: float, half_width: float = 0.05) -> Changes:
    """Differences of made-up means, each known to within ``half_width``."""
    return {
        (i, j): Estimate(after - before, after - before - half_width, after - before + half_width)
        for (i, before), (j, after) in combinations(enumerate(values), 2)
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # A plateau from the third value on.
        ((0.2, 0.5, 0.8, 0.82, 0.81), 2),
        # Every step is within its interval, but two of them are not: the value before them has not saturated.
        ((0.5, 0.54, 0.58, 0.58), 1),
        # Still rising at the end.
        ((0.1, 0.3, 0.5, 0.7), 3),
        # Nothing helps, or it harms.
        ((0.5, 0.5, 0.5), 0),
        ((0.9, 0.6, 0.2), 0),
        # A dip in between does not hide the rise behind it.
        ((0.5, 0.3, 0.9, 0.9), 2),
        ((0.5,), 0),
    ],
)
def test_protection_saturates_where_no_larger_value_is_better_beyond_its_interval(
    values: Sequence[float], expected: int
) -> None:
    assert saturation(len(values), curve(*values)) == expected


def test_wider_intervals_saturate_earlier() -> None:
    values = (0.2, 0.5, 0.8, 0.86)
    assert [saturation(4, curve(*values, half_width=width)) for width in (0.01, 0.1, 0.4, 1.0)] == [3, 2, 1, 0]


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(0.01, 1))
def test_no_value_after_saturation_is_settled_to_be_better(values: list[float], width: float) -> None:
    index = saturation(len(values), curve(*values, half_width=width))
    assert all(later - values[index] <= width for later in values[index:])
    assert all(max(values[before:]) - values[before] > width * 0.999 for before in range(index))


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1.0, 1.0, 0.8, 0.7), 2), ((1.0, 0.96, 0.92), 2), ((0.5, 1.0, 0.8), 2), ((0.5, 0.6, 0.58), None), ((0.5,), None)],
)
def test_the_task_gain_falls_from_the_first_value_that_is_below_an_earlier_one(
    values: Sequence[float], expected: int | None
) -> None:
    assert first_fall(len(values), curve(*values)) == expected


def test_what_cannot_be_compared_settles_nothing() -> None:
    assert saturation(3, {}) == 0
    assert first_fall(3, {}) is None


def test_changes_are_paired_and_positive_where_better() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=60)

    def result(name: str, shift: float, size: int = 60) -> ArmResult:
        samples = (Ratio(noise[:size] + shift, np.ones(size)),)
        return ArmResult(Arm(name), records(0), ({"task_gain": samples, "drift": samples},))

    results = [result("8", 0.0), result("16", 0.2), result("32", 0.2, size=30), ArmResult(Arm("64"), (), ())]
    gain = changes(results, "task_gain")
    assert set(gain) == {(0, 1)}
    # The noise that both share is gone.
    assert (gain[0, 1].value, gain[0, 1].low, gain[0, 1].seeds) == (pytest.approx(0.2), pytest.approx(0.2), 1)
    assert changes(results, "drift")[0, 1].high == pytest.approx(-0.2)
    # As it is measured, with less of it better.
    drift = differences(results, "drift")[0, 1]
    assert (drift.arm, drift.reference, drift.value.value) == ("16", "8", pytest.approx(0.2))


def test_only_seeds_that_both_values_have_are_compared() -> None:
    found = [
        ArmResult(
            Arm(name),
            records(*seeds),
            tuple({"drift": (Ratio(np.full(4, 10.0 * seed + shift), np.ones(4)),)} for seed in seeds),
        )
        for name, shift, seeds in (("8", 0.0, (0, 1)), ("16", 0.5, (1,)))
    ]
    assert changes(found, "drift")[0, 1].value == pytest.approx(-0.5)


def test_in_a_full_grid_only_cells_of_the_same_other_settings_are_compared() -> None:
    def arm(name: str, shift: float, groups: tuple[str, ...]) -> ArmResult:
        levels = {"samples 24": 0.0, "samples 48": 100.0}
        outcomes = tuple({"task_gain": (Ratio(np.full(4, levels[one] + shift), np.ones(4)),)} for one in groups)
        return ArmResult(Arm(name), records(*[0] * len(groups)), outcomes, groups=groups)

    found = changes([arm("8", 0.0, ("samples 24", "samples 48")), arm("16", 0.5, ("samples 48",))], "task_gain")
    # Two settings of one seed are no two seeds.
    assert (found[0, 1].value, found[0, 1].seeds) == (pytest.approx(0.5), 1)
    both = [arm(name, shift, ("samples 24", "samples 48")) for name, shift in (("8", 0.0), ("16", 0.5))]
    assert changes(both, "task_gain")[0, 1].seeds == 1
