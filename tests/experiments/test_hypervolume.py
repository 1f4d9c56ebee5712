from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralign.experiments.hypervolume import hypervolume, reference_point

WHOLE = st.lists(st.tuples(st.integers(-2, 6), st.integers(-2, 6)), max_size=6)
REAL = st.lists(st.tuples(st.floats(-2, 3), st.floats(-2, 3)), max_size=6)


@given(WHOLE)
def test_the_area_is_that_of_the_unit_squares_that_a_point_covers(points: list[tuple[int, int]]) -> None:
    covered = [
        (left, below)
        for left, below in itertools.product(range(6), repeat=2)
        if any(left + 1 <= x and below + 1 <= y for x, y in points)
    ]
    assert hypervolume(points, (0, 0)) == len(covered)


@given(REAL, st.tuples(st.floats(-2, 3), st.floats(-2, 3)))
def test_a_further_point_never_lowers_it(points: list[tuple[float, float]], further: tuple[float, float]) -> None:
    before, after = hypervolume(points, (0, 0)), hypervolume([*points, further], (0, 0))
    assert after >= before - 1e-12
    if any(x >= further[0] and y >= further[1] for x, y in points):
        assert after == pytest.approx(before, abs=1e-12)


@given(REAL, st.randoms())
def test_order_and_repetition_do_not_matter(points: list[tuple[float, float]], random: Random) -> None:
    shuffled = points * 2
    random.shuffle(shuffled)
    assert hypervolume(shuffled, (0, 0)) == pytest.approx(hypervolume(points, (0, 0)), abs=1e-12)


@given(REAL)
def test_less_is_more_where_less_is_better(points: list[tuple[float, float]]) -> None:
    flipped = [(-x, y) for x, y in points]
    value = hypervolume(flipped, (1, -2), higher=(False, True))
    assert value == pytest.approx(hypervolume(points, (-1, -2)), abs=1e-12)


def test_nothing_beyond_the_reference_has_no_area() -> None:
    assert hypervolume([], (0, 0)) == 0
    assert hypervolume([(0.0, 5.0), (5.0, -1.0)], (0, 0)) == 0
    assert hypervolume([(0.5, 2.0), (1.0, 1.0)], (0, 0)) == pytest.approx(1.5)


def test_the_reference_is_nothing_kept_and_nothing_gained_or_the_worst_there_is() -> None:
    points = [(0.9, 0.2), (0.5, 0.4)]
    assert reference_point(points, (True, True)) == (0.0, 0.0)
    assert reference_point(points, (False, True)) == (0.9, 0.0)
