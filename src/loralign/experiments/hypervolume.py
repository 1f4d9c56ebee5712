"""The hypervolume of a set of points in two measures: how much a search has reached, as one number."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[float, float]


def hypervolume(points: Sequence[Pair], reference: Pair, *, higher: tuple[bool, bool] = (True, True)) -> float:
    """The area of what at least one point beats and what itself beats the reference point.

    With the points' gains ``(x, y)`` over the reference, sorted by falling ``x``, every point whose ``y`` exceeds all
    before adds the strip ``x · (y − largest y before)``. A further point never lowers it, and a point that another one
    beats changes nothing, nor does one that does not beat the reference in both.

    Args:
        points: two measures each.
        reference: from which on something counts.
        higher: of either measure, whether more of it is better.

    Returns:
        In the product of the two units; 0 where no point beats the reference.

    References:
        Zitzler and Thiele, Multiobjective optimization using evolutionary algorithms, PPSN V (1998).
    """
    signs = [1.0 if one else -1.0 for one in higher]
    gains = [(signs[0] * (across - reference[0]), signs[1] * (up - reference[1])) for across, up in points]
    area, top = 0.0, 0.0
    for x, y in sorted(gains, reverse=True):
        if x > 0 and y > top:
            area += x * (y - top)
            top = y
    return area


def reference_point(points: Sequence[Pair], higher: tuple[bool, bool]) -> Pair:
    """The reference where none is stated: 0 where more is better, the worst of the points where less is.

    Nothing kept and nothing gained is worth nothing. A drift or a loss knows no such end, so there the number compares
    searches only where their reference is stated.

    Args:
        points: at least one.
        higher: of either measure, whether more of it is better.
    """
    across, up = (0.0 if one else max(column) for one, column in zip(higher, zip(*points, strict=True), strict=True))
    return across, up
