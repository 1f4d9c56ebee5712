"""Charts over optimiser steps: their lines, their common axis, and marks where something happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from loralign.report.theme import style, thin

STEP_AXIS = "optimiser step"

MOST_MARKS = 100
"""Marks drawn at most; with more of them, evenly chosen ones."""

MOST_NAMED = 4
"""Up to so many marks are named on the chart; more show as ``▾``. All say what they are on hovering."""

CHARACTER = 0.03
"""Share of the time axis that a character of a mark's name takes on a page of 380 pixels."""

LINE = 13
"""Height of a mark's name, in pixels."""

DECADES = 2.0
"""From so many powers of ten on, a logarithmic axis is numbered at these only."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: what stands on the chart, and what hovering over it tells (inert lines)."""

    step: int
    name: str
    told: tuple[str, ...]


def line(
    steps: Sequence[int],
    values: Sequence[float | None],
    name: str,
    shade: str,
    *,
    stroke: str = "solid",
    marker: str = "circle",
    size: int = 5,
    hover: str = "%{y:.3~g}",
) -> go.Scatter:
    """Return measured values as a line with markers that bridges gaps.

    Args:
        steps: optimiser steps, ``(n,)``.
        values: ``(n,)``, ``None`` where there is no measurement.
        name: in the legend; inert text.
        shade: a CSS colour.
        stroke: dash of the line.
        marker: symbol of the markers.
        size: of the markers, in pixels.
        hover: plotly's template of the hover label.
    """
    return go.Scatter(
        x=steps,
        y=values,
        name=name,
        mode="lines+markers",
        marker={"color": shade, "symbol": marker, "size": size},
        line={"color": shade, "dash": stroke, "width": 2},
        hovertemplate=hover,
        connectgaps=True,
    )


def dots_and_mean(
    points: Sequence[tuple[int, float]], window: int, name: str, shade: str, *, stroke: str, marker: str
) -> tuple[go.Scatter, go.Scatter]:
    """Return noisy single steps as faint dots, and their centred rolling mean as a line.

    Args:
        points: step and value, at least one.
        window: steps that a mean is taken over.
        name: in the legend; inert text.
        shade: a CSS colour.
        stroke: dash of the line.
        marker: symbol of the dots.
    """
    raw = thin(points)
    smooth = thin(list(zip((x for x, _ in points), rolling([y for _, y in points], window), strict=True)))
    dots = go.Scatter(
        x=[x for x, _ in raw],
        y=[y for _, y in raw],
        mode="markers",
        marker={"color": shade, "size": 4, "symbol": marker},
        opacity=0.3,
        showlegend=False,
        hoverinfo="skip",
    )
    mean = go.Scatter(
        x=[x for x, _ in smooth],
        y=[y for _, y in smooth],
        name=name,
        mode="lines",
        line={"color": shade, "dash": stroke, "width": 2.2},
        hovertemplate="%{y:.3~g}",
    )
    return dots, mean


def rolling(values: Sequence[float], window: int) -> list[float]:
    """Return centred rolling means; the window shrinks at both ends."""
    reach = window // 2
    slices = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in slices]


def finish(figure: go.Figure, height: int, marks: Sequence[Mark] = ()) -> go.Figure:
    """Style a chart over time, name its lowest time axis and draw the marks."""
    style(figure, height=height, time=True)
    axes = list(figure.select_xaxes())
    axes[-1].update(title=STEP_AXIS)
    shown = thin(_merged(marks), MOST_MARKS)
    middle = max((x for trace in figure.data for x in trace.x or ()), default=0) / 2
    named = len(shown) <= MOST_NAMED
    levels = _levels(shown, middle) if named else [0] * len(shown)
    for mark, level in zip(shown, levels, strict=True):
        stroke = {"color": "var(--mark)", "width": 1, "dash": "dashdot"}
        figure.add_shape(type="line", x0=mark.step, x1=mark.step, xref="x", y0=0, y1=1, yref="paper", line=stroke)
        figure.add_annotation(
            x=mark.step,
            xref="x",
            y=0,
            yref="paper",
            yanchor="bottom",
            yshift=LINE * level,
            xanchor="left" if mark.step <= middle else "right",  # a narrow page has no room beyond its end
            text=mark.name if named else "▾",
            hovertext="<br>".join(mark.told),
            showarrow=False,
            font={"size": 11, "color": "var(--mark)"},
        )
    return figure


def _levels(marks: Sequence[Mark], middle: float) -> list[int]:
    """The line above the axis that each name stands on: the lowest where it meets no other on a narrow page."""
    lines: list[list[tuple[float, float]]] = []
    found = []
    for mark in marks:
        reach = 2 * middle * CHARACTER * len(mark.name)
        left, right = (mark.step, mark.step + reach) if mark.step <= middle else (mark.step - reach, mark.step)
        free = (level for level, taken in enumerate(lines) if all(right <= a or b <= left for a, b in taken))
        level = next(free, len(lines))
        if level == len(lines):
            lines.append([])
        lines[level].append((left, right))
        found.append(level)
    return found


def _merged(marks: Sequence[Mark]) -> list[Mark]:
    """One mark per step, in order: names and tellings of those at the same step stand together."""
    merged: dict[int, Mark] = {}
    for mark in sorted(marks, key=lambda one: one.step):
        other = merged.get(mark.step)
        if other is None:
            merged[mark.step] = mark
        else:
            name = other.name if mark.name == other.name else f"{other.name}, {mark.name}"
            merged[mark.step] = Mark(mark.step, name, (*other.told, *mark.told))
    return list(merged.values())


def logarithmic(values: Sequence[float]) -> dict[str, object]:
    """Return the settings of a logarithmic axis for positive values, at least one."""
    wide = math.log10(max(values) / min(values)) >= DECADES
    return {"type": "log", "exponentformat": "power", **({"dtick": 1} if wide else {})}
