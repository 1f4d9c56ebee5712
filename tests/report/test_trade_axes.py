"""Where drift is drawn: one arm that drifts far must not press the others into a corner."""

from __future__ import annotations

import pytest

from loralign.report.families import Family, families_chart
from loralign.report.trade import Axis, Interval, TradePoint, trade_chart

DRIFT, GAIN = Axis("drift", higher=False), Axis("task gain", higher=True)


def points(*values: Interval) -> list[TradePoint]:
    return [TradePoint(f"arm {index}", value, (0.1, 0.05, 0.2)) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([(0.02, 0.01, 0.03), (0.9, 0.8, 1.0)], "log"),
        ([(0.02, 0.01, 0.03), (0.1, 0.05, 0.2)], None),
        # The interval of an arm that hardly drifts reaches zero, which a logarithm has no place for.
        ([(0.02, 0.0, 0.03), (0.9, 0.8, 1.0)], None),
        ([(-0.02, -0.03, -0.01), (0.9, 0.8, 1.0)], None),
        ([(0.02, 0.01, 0.03)], None),
    ],
)
def test_a_measure_over_more_than_a_power_of_ten_has_a_logarithmic_axis(
    values: list[Interval], kind: str | None
) -> None:
    arms = points(*values)
    for chart in (
        trade_chart(arms, DRIFT, GAIN, key="a"),
        families_chart([Family("all", arms), Family("none", [])], DRIFT, GAIN, key="b", marks=[0.1]),
    ):
        assert chart.figure.layout.xaxis.type == kind
        assert chart.figure.layout.yaxis.type is None


def test_families_without_a_point_are_drawn_as_nothing() -> None:
    assert not families_chart([Family("none", [])], DRIFT, GAIN, key="b").figure.data
