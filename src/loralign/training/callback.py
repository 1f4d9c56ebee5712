"""The geometry correction as a callback for anybody's transformers Trainer or TRL trainer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loralign.capture.probe import owners
from loralign.errors import ConfigError, NonFiniteError
from loralign.training.checkpoint import has_state, last_whole_checkpoint, load_state, save_state
from loralign.training.collator import OBJECTIVE_IDS, ObjectiveCollator
from loralign.training.config import GeometryConfig
from loralign.training.engine import GeometryEngine
from loralign.training.record_log import RecordLog

LOG_NAME = "geometry.jsonl"
STATE_NAME = "geometry_state"


class GeometryCallback(TrainerCallback):
    """Measures, weights and refines inside any Trainer whose loss is a mean over samples that do not mix.

    Use it with :class:`~loralign.training.collator.ObjectiveCollator`, which puts the objective ids into the batch; a
    hook on the model takes them out again before the model sees them::

        trainer = SFTTrainer(..., args=SFTConfig(..., remove_unused_columns=False))
        GeometryCallback(names, config).install(trainer)

    Writes ``geometry.jsonl`` into the output directory and its state into every checkpoint.

    Args:
        objectives: the ``K`` names.
        config: what to measure and when.
        target: ``λ (K,)``; one each by default.
        blame: names the objectives whose gradient is not finite, where the trainer can find out.
        step_record: the objectives' losses and metrics of the step just made, where the trainer knows them.
    """

    def __init__(
        self,
        objectives: Sequence[str],
        config: GeometryConfig | None = None,
        target: Tensor | None = None,
        blame: Callable[[], Sequence[str]] | None = None,
        step_record: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.objectives = tuple(objectives)
        self.config = config or GeometryConfig()
        self.target = torch.ones(len(self.objectives), dtype=torch.float64) if target is None else target.double()
        self.engine: GeometryEngine | None = None
        self.log = RecordLog(None)
        self.latest: dict[str, float] = {}
        self._blame = blame
        self._step_record = step_record
        self._hook: Any = None
        self._accumulation = 1
        self._trainer: Callable[[], Any] = lambda: None
        self._tokens: float | None = None
        self._resume: Path | None = None
        self.start: Callable[[], dict[str, Any]] | None = None

    def install(self, trainer: Any, column: str = "objective") -> None:
        """Add the callback to a trainer, ahead of its reporters so that they see its numbers, and wrap its collator.

        Args:
            trainer: a transformers or TRL trainer that keeps the label column
                (``remove_unused_columns=False``).
            column: the column that holds the objective's name.

        Raises:
            ConfigError: the labels would not reach the collator, or not one for every row of the batch: the data set
                has no such column, or the trainer drops it or joins several samples in one row.
        """
        _check_labels_arrive(trainer, column)
        self._trainer = weakref.ref(trainer)
        trainer.data_collator = ObjectiveCollator(trainer.data_collator, self.objectives, column)
        trainer.callback_handler.callbacks.insert(0, self)

    def resume_from(self, checkpoint: Path | None) -> None:
        """Say which checkpoint the next call of ``train`` resumes from."""
        self._resume = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the hooks on the model and continue a saved state."""
        self.attach(kwargs["model"], args.seed)
        self._accumulation = args.gradient_accumulation_steps
        output = Path(args.output_dir)
        self.log = RecordLog(output / LOG_NAME if state.is_world_process_zero else None)
        checkpoint = self._resume or (output / f"checkpoint-{state.global_step}" if state.global_step else None)
        if checkpoint is not None and has_state(checkpoint, STATE_NAME):
            self.running.load_state_dict(*load_state(checkpoint, STATE_NAME))
        self.log.truncate(state.global_step)
        if self.start is not None and state.global_step == 0:
            self.log.append(self.start())

    def attach(self, model: nn.Module, seed: int) -> None:
        """Put the hooks on the model, in place of those that this or another callback's cut-off training left."""
        self.close()
        for owner in owners(model._forward_pre_hooks.values()):
            if isinstance(owner, GeometryCallback):
                owner.close()
        self.engine = GeometryEngine(model, self.objectives, self.target, self.config, seed=seed)
        self._hook = model.register_forward_pre_hook(self._take_ids, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open an optimiser step."""
        self._tokens = None
        self.running.begin_step(state.global_step)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the micro-batch."""
        self.running.end_batch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the gradients and read the measurement.

        Raises:
            NonFiniteError: a gradient is infinite or not a number.
        """
        self.running.finish_backward(state.global_step, loss_total=self._tokens)
        if args.fp16:
            # The gradient scaler skips a step that is not finite by itself.
            return
        gradients = [p.grad for layer in self.running.capture.layers for p in (layer.A, layer.B) if p.grad is not None]
        if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            guilty = list(self._blame()) if self._blame is not None else []
            raise non_finite("gradient", state.global_step, guilty, Path(args.output_dir))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the step taken and refine if it is time."""
        for record in self.running.finish_step(state.global_step, kwargs.get("optimizer")):
            self.log.append(record)
            self.latest = summary(record) or self.latest
        if self._step_record is not None:
            optimizer = kwargs.get("optimizer")
            rate = None if optimizer is None else optimizer.param_groups[0]["lr"]
            self.log.append({"kind": "step", "step": state.global_step, **self._step_record(), "learning_rate": rate})

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the latest measurement to what is logged."""
        logs = kwargs.get("logs")
        if logs is not None and "loss" in logs:
            logs.update({key: value for key, value in self.latest.items() if key not in logs})
            if state.log_history:
                state.log_history[-1].update(self.latest)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the geometry's state into the checkpoint just written."""
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and directory.is_dir() and not has_state(directory, STATE_NAME):
            self.save_state(directory)

    def save_state(self, directory: Path) -> None:
        """Write the geometry's state into ``directory``."""
        save_state(directory, STATE_NAME, self.running.state_dict(), self.running.tensor_state())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hooks off again."""
        self.close()

    def close(self) -> None:
        """Leave the model as it was found."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @property
    def running(self) -> GeometryEngine:
        """The engine of the training in progress."""
        if self.engine is None:
            raise RuntimeError("training has not begun")
        return self.engine

    def _take_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if OBJECTIVE_IDS not in kwargs:
            return None
        kwargs = dict(kwargs)
        ids = kwargs.pop(OBJECTIVE_IDS)
        if module.training and torch.is_grad_enabled():
            weights, scale = None, 1 / self._micro_batches()
            labels = kwargs.get("labels")
            if self.config.loss_reduction == "token" and isinstance(labels, Tensor):
                # The mean is over the tokens of the whole step, so the total is known after its last micro-batch only;
                # nothing predicts a text's first token.
                counts = (labels[:, 1:] != -100).sum(dim=1)
                scale = float(counts.sum())
                weights = counts if scale else None
                self._tokens = scale + (self._tokens or 0.0)
            self.running.begin_batch(ids, loss_scale=scale, sample_weights=weights)
        return args, kwargs

    def _micro_batches(self) -> int:
        """By how many the trainer divides the loss: fewer in an epoch's last step, where the trainer is known."""
        return int(getattr(self._trainer(), "current_gradient_accumulation_steps", None) or self._accumulation)


def _check_labels_arrive(trainer: Any, column: str) -> None:
    """Without this a run would go through with no sample in any objective, unmeasured and unweighted."""
    for option in ("packing", "padding_free"):
        if getattr(trainer.args, option, False):
            raise ConfigError(
                f"{option} joins several samples in one row, which then belongs to no one objective",
                place=option,
                fix=f"set {option}=False",
            )
    names = getattr(trainer.train_dataset, "column_names", None)
    if names is not None and column not in names:
        raise ConfigError(
            f"the training data has no {column!r} column",
            place="train_dataset",
            fix="label every sample with its objective, or say which column does: install(trainer, column)",
        )
    if trainer.args.remove_unused_columns:
        trainer._set_signature_columns_if_needed()
        if column not in trainer._signature_columns:
            raise ConfigError(
                f"the trainer drops the {column!r} column before the collator sees it",
                place="remove_unused_columns",
                fix="set remove_unused_columns=False",
            )


def summary(record: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a measurement that belong into a trainer's own log."""
    if record["kind"] != "measurement":
        return {}
    weights = record["weights"].get("mean", record["weights"])
    values = {
        "geometry/directional_distortion": record["directional_distortion"],
        "geometry/step_distortion": record["step_distortion"],
        "geometry/tradeoff_distortion": record["tradeoff"]["total_variation"],
        **{f"attenuation/{name}": value for name, value in record["attenuation"].items()},
        **{f"weight/{name}": value for name, value in weights.items()},
    }
    for row, first in enumerate(record["objectives"]):
        for column, second in enumerate(record["objectives"][:row]):
            values[f"cosine/{second}-{first}"] = record["cosine"]["full"][row][column]
    return {key: value for key, value in values.items() if value is not None}


def non_finite(what: str, step: int, objectives: Sequence[str], output: Path) -> NonFiniteError:
    """The error for a loss or gradient that is no number: step, objective and what is left."""
    whose = f" of {', '.join(objectives)}" if objectives else ""
    last = last_whole_checkpoint(output)
    rest = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
    return NonFiniteError(
        f"the {what}{whose} is not finite",
        place=f"step {step}",
        fix=f"{rest}; lower the learning rate or check the data",
    )
