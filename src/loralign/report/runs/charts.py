"""Charts over the arms: refusals by category as bars, and courses over optimiser steps as lines.

A trace that belongs to an arm or a category says so in its ``meta``, by which the page's filter finds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from loralign.report.format import significant
from loralign.report.runs.combining import Arm
from loralign.report.runs.records import Category, Curve, Quantity
from loralign.report.runs.tables import category_groups, category_table, value_text
from loralign.report.theme import Chart, Table, colour, dash, label, style, symbol, thin
from loralign.report.timeline import dots_and_mean, finish, line

MOST_ROWS = 200
"""Rows of a course's table at most."""


def category_names(arms: Sequence[Arm]) -> list[str]:
    """Return the categories of any arm, in the order of their files."""
    return list(dict.fromkeys(one.category for arm in arms for one in arm.categories))


def category_charts(arms: Sequence[Arm]) -> list[Chart]:
    """Return the bars of refusals (and of toxicity) by category, one chart for each quantity and ground."""
    names = category_names(arms)
    charts: list[Chart] = []
    shared: dict[Quantity, set[str]] = {}
    for number, (quantity, ground, found) in enumerate(category_groups(arms)):
        # What a check says of all these arms alike leaves no question for their own probes.
        here = {name for name, _ in found}
        if ground.name.startswith("own") and here <= shared.get(quantity, set()):
            continue
        shared.setdefault(quantity, set()).update(here)
        wanted = "More is better." if quantity.higher else "Less is better."
        charts.append(
            Chart(
                key=f"categories-{number}",
                title=f"{quantity.title.capitalize()} by category",
                note=f"Measured on: {ground.name}. {wanted} Lines are bootstrap intervals; where they overlap, the "
                "prompts at hand may not settle a difference.",
                figure=_bars(arms, names, quantity, found),
                table=category_table(quantity, found),
            )
        )
    return charts


def _bars(
    arms: Sequence[Arm], names: Sequence[str], quantity: Quantity, found: Sequence[tuple[str, Category]]
) -> go.Figure:
    figure = go.Figure()
    shown = [index for index, arm in enumerate(arms) if any(name == arm.name for name, _ in found)]
    labels = list(dict.fromkeys((one.label, one.category) for _, one in found))
    several = len({kind for kind, _ in labels}) > 1
    cells = {(name, one.label, one.category): one for name, one in found}
    for kind, category in labels:
        title = label(f"{category} ({kind})" if several else category, 24)
        for index in shown:
            one = cells.get((arms[index].name, kind, category))
            if one is not None and one.metric.value is not None:
                _add_bar(figure, one, one.metric.value, title, index, arms[index].name, names.index(category), quantity)
    for index in shown:
        square = {"color": colour(index), "symbol": "square", "size": 11}
        name = label(arms[index].name, 24)
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=square, name=name, meta={"arm": index})
    style(figure, height=110 + len(labels) * (26 + 15 * len(shown)))
    figure.update_layout(barmode="group", bargap=0.25, legend={"itemclick": False, "itemdoubleclick": False})
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_xaxes(title=f"{quantity.title} (%)", range=[0, 103], zeroline=False)
    return figure


def _add_bar(
    figure: go.Figure, one: Category, share: float, title: str, arm: int, name: str, category: int, quantity: Quantity
) -> None:
    error = None
    if one.metric.low is not None and one.metric.high is not None:
        ends = {"array": [100 * (one.metric.high - share)], "arrayminus": [100 * (share - one.metric.low)]}
        error = {"type": "data", "symmetric": False, "color": "var(--ink)", "thickness": 1.2, "width": 3, **ends}
    figure.add_bar(
        x=[100 * share],
        y=[title],
        orientation="h",
        offsetgroup=str(arm),
        marker={"color": colour(arm), "pattern": {"shape": "/" if arm >= 8 else ""}},
        error_x=error,
        showlegend=False,
        hovertext=f"{label(name)}, {title}: {value_text(one.metric, quantity)}",
        hoverinfo="text",
        meta={"arm": arm, "category": category},
    )


def curve_charts(arms: Sequence[Arm]) -> list[Chart]:
    """Return one chart for each kind of course, with the lines of all arms."""
    kinds: dict[str, list[tuple[int, Curve]]] = {}
    for index, arm in enumerate(arms):
        for curve in arm.curves:
            kinds.setdefault(curve.key, []).append((index, curve))
    return [_curves(arms, found) for found in kinds.values()]


def _curves(arms: Sequence[Arm], found: Sequence[tuple[int, Curve]]) -> Chart:
    figure = go.Figure()
    first = found[0][1]
    split = any(curve.name for _, curve in found)
    rows: list[tuple[str, ...]] = []
    for number, (index, curve) in enumerate(found):
        look = number if split else index
        name = f"{arms[index].name}{f', {curve.name}' if curve.name else ''}"
        if curve.noisy:
            window = max(1, len(curve.points) // 12)
            traces: Sequence[go.Scatter] = dots_and_mean(
                curve.points, window, label(name), colour(look), stroke=dash(look), marker=symbol(look)
            )
        else:
            points = thin(curve.points)
            steps, values = [step for step, _ in points], [value for _, value in points]
            traces = [line(steps, values, label(name), colour(look), stroke=dash(look), marker=symbol(look))]
        for trace in traces:
            trace.update(meta={"arm": index})
            figure.add_trace(trace)
        rows += [
            (name, str(step), significant(value)) for step, value in thin(curve.points, max(1, MOST_ROWS // len(found)))
        ]
    figure.update_yaxes(title=first.axis)
    finish(figure, 340)
    figure.update_layout(legend={"itemclick": False, "itemdoubleclick": False})
    note = "Dots are single steps, lines means over neighbouring ones. " if first.noisy else ""
    note += "Step −1 is the start." if any(step < 0 for _, curve in found for step, _ in curve.points) else ""
    return Chart(f"curve-{first.key}", first.title, note, figure, Table(("arm", "step", first.axis), tuple(rows)))
