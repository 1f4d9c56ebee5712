from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.evaluation.bootstrap import Ratio, bootstrap_mean
from loralign.experiments.sample_statistics import Lowest, kept_share
from loralign.experiments.seed_means import value

SHARES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


def share(before: list[float], after: list[float]) -> float:
    found = kept_share(np.array(before), np.array(after))
    assert found is not None
    return value((found,))


def test_what_is_new_is_not_kept() -> None:
    assert share([1, 0], [0, 1]) == 0
    assert share([1, 1, 0, 0], [1, 0, 1, 1]) == 0.5
    assert kept_share(np.zeros(3), np.ones(3)) is None


@settings(max_examples=50, deadline=None)
@given(SHARES)
def test_no_more_is_kept_than_there_was(pairs: list[tuple[float, float]]) -> None:
    found = kept_share(*np.array(pairs).T)
    assert found is None or 0 <= value((found,)) <= 1 + 1e-9


def test_every_resample_has_something_to_keep() -> None:
    # Two of forty: seven resamples of all samples in eight would have none of one of them, and one in eight of both.
    before = np.zeros(40)
    before[:2] = 1
    after = np.zeros(40)
    after[0] = 1
    found = kept_share(before, after)
    assert found is not None
    interval = bootstrap_mean([found], resamples=500)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_the_lowest_group_is_that_of_the_resample() -> None:
    groups = {"a": Ratio(np.array([1.0, 0.0]), np.ones(2)), "b": Ratio(np.array([0.0, 1.0, 1.0]), np.ones(3))}
    found = Lowest.of(groups)
    assert value((found,)) == 0.5
    index = np.array([[0, 0, 2, 2, 2], [1, 1, 3, 3, 3], [0, 1, 0, 1, 0], [0, 0, 0, 3, 4]])
    # Where all of b, or all of a, is wrong; where b is missing; where all are right.
    assert found.at(index) == pytest.approx([0.0, 0.0, 0.6, 1.0])
