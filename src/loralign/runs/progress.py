"""One line of progress with a remaining time."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RunProgress(TrainerCallback):
    """A bar over optimiser steps that shows the loss and the accuracy of the implicit rewards.

    Args:
        title: what the bar says.
        show: whether this process draws it.
    """

    def __init__(self, title: str, show: bool = True) -> None:
        self.title = title
        self.show = show
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the bar, begun where a resumed run stands."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.title, unit="step", disable=not self.show
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move on by a step."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the latest numbers."""
        logs = kwargs.get("logs") or {}
        shown = {"loss": logs.get("loss"), "accuracy": logs.get("rewards/accuracies")}
        self._bar.set_postfix({key: f"{float(value):.3f}" for key, value in shown.items() if value is not None})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the finished bar standing."""
        self._bar.close()
