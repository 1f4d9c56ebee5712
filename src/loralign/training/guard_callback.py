"""The guard as a callback for anybody's transformers Trainer or TRL trainer."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loralign.errors import ConfigError
from loralign.guard import AlignmentSubspace
from loralign.training.callback import non_finite
from loralign.training.checkpoint import has_state, load_state, save_state
from loralign.training.guard_config import GuardConfig
from loralign.training.guard_engine import GuardData, GuardEngine, check_guard
from loralign.training.record_log import RecordLog

logger = logging.getLogger(__name__)

GUARD_LOG = "guard.jsonl"
GUARD_STATE = "guard_state"


class GuardCallback(TrainerCallback):
    """Holds the alignment-critical part of a LoRA update inside any Trainer: SFT, DPO, KTO or a plain one.

    The penalty's gradient is put into the parameters' gradients before the first backward pass of a step, which then
    adds the task's to it; so accumulation, clipping and data parallelism treat both alike::

        subspace = AlignmentSubspace.load("fisher/")
        trainer = SFTTrainer(model, ..., peft_config=LoraConfig(...))
        GuardCallback(subspace, GuardConfig(drift_budget=0.05), GuardData(probe=probe)).install(trainer)

    Passing it among ``callbacks=`` works as well; reporters then see its numbers one log later, and mixed precision
    with a gradient scaler (``fp16``) is refused. Writes ``guard.jsonl`` into the output directory and its state into
    every checkpoint.

    Args:
        subspace: of the model that the adapter starts from; ``None`` holds nothing and measures drift only.
        config: what to do when.
        data: what to measure on.
    """

    def __init__(
        self, subspace: AlignmentSubspace | None, config: GuardConfig | None = None, data: GuardData | None = None
    ) -> None:
        self.subspace = subspace
        self.config = config or GuardConfig()
        self.data = data or GuardData()
        self.engine: GuardEngine | None = None
        self.log = RecordLog(None)
        self.latest: dict[str, float] = {}
        self._accelerator: Any = None
        self._resume: Path | None = None

    def install(self, trainer: Any) -> None:
        """Add the callback to a trainer, ahead of its reporters so that they see its numbers."""
        self._accelerator = trainer.accelerator
        trainer.callback_handler.callbacks.insert(0, self)

    def check(self, model: nn.Module) -> None:
        """Check that the guard can begin on this PEFT model, before anything is trained or cleared.

        Raises:
            LoralignError: as :func:`~loralign.training.guard_engine.check_guard`.
        """
        check_guard(model, self.subspace, self.config, self.data)

    def resume_from(self, checkpoint: Path | None) -> None:
        """Say which checkpoint the next call of ``train`` resumes from."""
        self._resume = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the start, or continue a saved state."""
        if args.fp16 and self._accelerator is None:
            raise ConfigError("the gradient scaler is not known", place="fp16", fix="use callback.install(trainer)")
        self.engine = GuardEngine(kwargs["model"], self.subspace, self.config, self.data, seed=args.seed)
        output = Path(args.output_dir)
        self.log = RecordLog(output / GUARD_LOG if state.is_world_process_zero else None)
        self.log.truncate(state.global_step)
        checkpoint = self._resume or (output / f"checkpoint-{state.global_step}" if state.global_step else None)
        if checkpoint is not None and has_state(checkpoint, GUARD_STATE):
            self.engine.load_state_dict(*load_state(checkpoint, GUARD_STATE))
            # A resumed run may be longer than it was to be.
            self.engine.monitors.total_steps = state.max_steps
        else:
            self._record(self.engine.start(state.max_steps))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seed the gradients with the penalty's."""
        scaler = getattr(self._accelerator, "scaler", None)
        self.running.begin_step(state.global_step, 1.0 if scaler is None else float(scaler.get_scale()))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients.

        Raises:
            NonFiniteError: a gradient is infinite or not a number.
        """
        if getattr(self._accelerator, "scaler", None) is not None:
            # The scaler skips such a step by itself and goes on with a smaller scale.
            return
        gradients = [p.grad for layer in self.running.layers for p in (layer.A, layer.B) if p.grad is not None]
        if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            raise non_finite("gradient", state.global_step, [], Path(args.output_dir))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act on the factors, measure drift, follow the budget."""
        stepped = not getattr(self._accelerator, "optimizer_step_was_skipped", False)
        self._record(self.running.finish_step(state.global_step, kwargs.get("optimizer"), stepped=stepped))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the monitors of the task's loss, unless there are samples held back for them."""
        if self.data.held_back:
            # What they know is another mean over other samples.
            return
        loss = (kwargs.get("metrics") or {}).get("eval_loss")
        if loss is not None and self.engine is not None:
            self._record(self.engine.task_loss(state.global_step - 1, float(loss)))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the guard's latest numbers to what is logged."""
        logs = kwargs.get("logs")
        if logs is not None and "loss" in logs:
            names = ("loss", "learning_rate", "grad_norm")
            # A step that a gradient scaler skips has a norm that JSON has no word for.
            known = {name: value for name, value in logs.items() if isinstance(value, float) and math.isfinite(value)}
            self.log.append(
                {"kind": "train", "step": state.global_step - 1}
                | {name: known[name] for name in names if name in known}
            )
            logs.update(self.latest)
            if state.log_history:
                state.log_history[-1].update(self.latest)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the guard's state into the checkpoint just written."""
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and directory.is_dir() and not has_state(directory, GUARD_STATE):
            self.save_state(directory)

    def save_state(self, directory: Path) -> None:
        """Write the guard's state into ``directory``."""
        save_state(directory, GUARD_STATE, self.running.state_dict(), self.running.tensor_state())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the model."""
        self.engine = None

    @property
    def running(self) -> GuardEngine:
        """The engine of the training in progress."""
        if self.engine is None:
            raise RuntimeError("training has not begun")
        return self.engine

    def _record(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self.log.append(record)
            self.latest.update(summary(record))
            if record["kind"] == "warning":
                logger.warning("step %d: %s (%s)", record["step"], record["message"], record["fix"])


def summary(record: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a record that belong into a trainer's own log."""
    if record["kind"] == "guard":
        values = {f"guard/{name}": value for name, value in record.get("penalty", {}).items()}
        return {**values, "guard/multiplier": record["multiplier"]}
    if record["kind"] == "probe":
        names = ("kl", "logprob_lost", "entropy", "share")
        return {f"drift/{name}": record[name] for name in names if name in record}
    if record["kind"] == "refusal":
        return {"drift/refusal_rate": record["rate"]}
    return {}
