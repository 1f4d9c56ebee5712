"""Differences of two scores that come with intervals, but without the samples behind them."""

from __future__ import annotations

from math import hypot

from loralign.report.records import Metric


def difference(after: Metric | None, before: Metric | None) -> Metric | None:
    """Return ``after − before`` with an interval from the two intervals, taken as independent.

    The distance of each end of the difference is the root of the summed squares of the distances that can move it
    there (the method of variance estimates recovery, Zou & Donner 2008; for shares Newcombe 1998). Scores on the same
    prompts mostly rise and fall together, so this interval is rather too wide than too narrow.

    Returns:
        The difference; without an interval where one of the scores has none; ``None`` where one has no value.
    """
    if after is None or before is None or after.value is None or before.value is None:
        return None
    value = after.value - before.value
    if after.low is None or after.high is None or before.low is None or before.high is None:
        return Metric(value)
    down = hypot(after.value - after.low, before.high - before.value)
    up = hypot(after.high - after.value, before.value - before.low)
    return Metric(value, value - down, value + up)


def beyond_zero(metric: Metric) -> bool | None:
    """Say whether an interval leaves zero out; ``None`` without an interval."""
    if metric.low is None or metric.high is None:
        return None
    return metric.low > 0 or metric.high < 0
