from __future__ import annotations

import pytest

from loralign.report.intervals import settled, share_interval
from loralign.report.records import Metric


def test_twenty_refusals_of_twenty_are_no_certainty() -> None:
    """A bootstrap of equal answers has no width; Wilson's interval of 20 of 20 begins at 0.839."""
    start = share_interval(Metric(1.0, 1.0, 1.0), 20)
    assert start is not None
    assert (start.low, start.high) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    none = share_interval(Metric(0.0, 0.0, 0.0), 20)
    assert none is not None
    assert (none.low, none.high) == (0.0, pytest.approx(0.1611, abs=1e-4))
    tuned = Metric(0.85, 0.6, 0.95)
    assert settled(Metric(1.0, 1.0, 1.0), tuned)
    assert not settled(start, share_interval(tuned, 20))
    assert settled(start, Metric(0.4, 0.2, 0.6))


@pytest.mark.parametrize(
    ("share", "count"), [(Metric(0.85, 0.6, 0.95), 20), (Metric(1.0, 1.0, 1.0), None), (Metric(None), 20), (None, 20)]
)
def test_other_intervals_stay_as_they_are(share: Metric | None, count: float | None) -> None:
    assert share_interval(share, count) is share
