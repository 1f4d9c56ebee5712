"""The chart of an adaptation's task over time."""

from __future__ import annotations

import plotly.graph_objects as go

from loralign.report.adaptation_records import Adaptation
from loralign.report.format import significant
from loralign.report.guard_charts import finish_guarded
from loralign.report.theme import Chart, Table, thin
from loralign.report.timeline import dots_and_mean, line


def loss_chart(run: Adaptation) -> Chart | None:
    """Return the chart of the task's loss in training and on held-back samples, ``None`` without any."""
    points = [(step.step, step.loss) for step in run.steps if step.loss is not None]
    if not points:
        return None
    window = max(1, len(points) // 12)
    figure = go.Figure(dots_and_mean(points, window, "task loss", "var(--accent)", stroke="solid", marker="circle"))
    held = thin([step for step in run.held_back if step.loss is not None])
    if held:
        figure.add_trace(
            line([one.step for one in held], [one.loss for one in held], "held back", "var(--contrast)", stroke="dot")
        )
    figure.update_yaxes(title="loss (nats per token)")
    rows = [(str(s.step), *map(significant, (s.loss, s.learning_rate, s.gradient_norm))) for s in thin(run.steps, 200)]
    mean = f"; the line is a mean over {2 * (window // 2) + 1} of them" if window > 1 else ""
    return Chart(
        key="loss",
        title="Task loss over time",
        note=f"On the training batches, as logged{mean}. The guard's penalty is not part of it."
        + (" Dotted: on a few held-back samples, which the monitors watch." if held else ""),
        figure=finish_guarded(figure, run, 320),
        table=Table(("step", "loss", "learning rate", "gradient norm"), tuple(rows)),
    )
