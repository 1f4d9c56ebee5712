"""How scores with intervals are written and compared."""

from __future__ import annotations

from scipy.stats import binomtest

from loralign.report.format import ABSENT, percent, significant
from loralign.report.records import Metric


def percent_interval(metric: Metric | None) -> str:
    """Return a share with its interval, ``65.6 % [58.1, 72.4]``."""
    if metric is None or metric.value is None:
        return ABSENT
    if metric.low is None or metric.high is None:
        return percent(metric.value)
    return f"{percent(metric.value)} [{significant(100 * metric.low)}, {significant(100 * metric.high)}]"


def interval(metric: Metric | None) -> str:
    """Return a score with its interval, ``0.210 [0.150, 0.280]``."""
    if metric is None or metric.value is None:
        return ABSENT
    if metric.low is None or metric.high is None:
        return significant(metric.value)
    return f"{significant(metric.value)} [{significant(metric.low)}, {significant(metric.high)}]"


def settled(before: Metric | None, after: Metric | None, difference: Metric | None = None) -> bool:
    """Say whether two scores differ beyond the bootstrap.

    By the interval of the paired difference where there is one, or else by intervals that do not overlap.
    """
    if difference and difference.low is not None and difference.high is not None:
        return difference.low > 0 or difference.high < 0
    if before is None or after is None:
        return False
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return False
    return after.low > before.high or after.high < before.low


def share_interval(share: Metric | None, count: float | None) -> Metric | None:
    """A share of so many yes and no with an interval that is wide where all are alike.

    A bootstrap of answers that are all the same knows of no others and gives an interval of no width. There, Wilson's
    takes its place.

    Args:
        share: with its bootstrap interval.
        count: of the answers; ``None`` where it is not known.
    """
    if share is None or share.value is None or not count or share.low != share.high:
        return share
    ends = binomtest(round(share.value * count), round(count)).proportion_ci(method="wilson")
    return Metric(share.value, min(share.value, float(ends.low)), max(share.value, float(ends.high)))


def turned(metric: Metric | None) -> Metric | None:
    """Return the score of the opposite direction."""
    if metric is None:
        return None
    return Metric(*(None if value is None else -value for value in (metric.value, metric.high, metric.low)))
