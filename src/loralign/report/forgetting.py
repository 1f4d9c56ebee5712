"""What was forgotten against the fine-tuning data, both logarithmic, with the fitted law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from loralign.report.format import significant
from loralign.report.theme import Chart, Table, colour, label, style, symbol
from loralign.report.timeline import logarithmic

AMOUNT = "fine-tuning samples"
FORGOTTEN = "forgetting, nats per token"


@dataclass(frozen=True)
class ForgettingCurve:
    """Runs of one model and arm, and what the law says of them.

    Attributes:
        name: of both together.
        shade: index of the arm's colour.
        shape: index of the model's symbol and line.
        points: amount, increment of the loss, low and high end of its interval.
        law: amounts and increments of the fitted law; empty where there is none.
    """

    name: str
    shade: int
    shape: int
    points: Sequence[tuple[float, float, float, float]]
    law: Sequence[tuple[float, float]] = ()


def forgetting_chart(curves: Sequence[ForgettingCurve], *, key: str = "forgetting") -> Chart | None:
    """Draw runs and law.

    Args:
        curves: of every model and arm.
        key: of the chart, unique on its page.

    Returns:
        The chart; ``None`` where no run has forgotten anything, which logarithms cannot show.
    """
    shown = {one.name: [point for point in one.points if point[1] > 0] for one in curves}
    heights = [point[1] for points in shown.values() for point in points]
    if not heights:
        return None
    figure = go.Figure()
    for one in curves:
        _add(figure, one, shown[one.name])
    style(figure, height=440)
    amounts = [point[0] for points in shown.values() for point in points]
    figure.update_xaxes(title=AMOUNT, **logarithmic(amounts))
    figure.update_yaxes(title=FORGOTTEN, **logarithmic(heights))
    missing = sum(len(one.points) for one in curves) - len(heights)
    left_out = f" {missing} runs that forgot nothing are not drawn." if missing else ""
    return Chart(
        key=key,
        title="Forgetting against fine-tuning data",
        note="Colours are arms, symbols models, bars 95 % intervals over samples of text; a bar that reaches zero ends "
        f"at the point. Lines are the fitted law, straight where its offset is small.{left_out}",
        figure=figure,
        table=Table(
            ("runs", AMOUNT, FORGOTTEN),
            tuple(
                (one.name, significant(amount), f"{significant(value)} [{significant(low)}, {significant(high)}]")
                for one in curves
                for amount, value, low, high in one.points
            ),
        ),
    )


def _add(figure: go.Figure, curve: ForgettingCurve, points: Sequence[tuple[float, float, float, float]]) -> None:
    shade = colour(curve.shade)
    law = [(amount, value) for amount, value in curve.law if value > 0]
    if law:
        figure.add_scatter(
            x=[amount for amount, _ in law],
            y=[value for _, value in law],
            mode="lines",
            line={"color": shade, "width": 1.5, "dash": "solid" if curve.shape == 0 else "dash"},
            hoverinfo="skip",
            showlegend=False,
        )
    figure.add_scatter(
        x=[point[0] for point in points],
        y=[point[1] for point in points],
        mode="markers",
        name=label(curve.name),
        marker={"color": shade, "symbol": symbol(curve.shape), "size": 9},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - value for _, value, _, high in points],
            "arrayminus": [value - low if low > 0 else 0 for _, value, low, _ in points],
            "color": shade,
            "thickness": 1.2,
            "width": 3,
        },
        hovertemplate=f"{label(curve.name)}<br>%{{x}} samples: %{{y:.3~g}}<extra></extra>",
    )
