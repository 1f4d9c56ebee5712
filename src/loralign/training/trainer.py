"""Multi-objective DPO with LoRA's geometry measured and corrected: TRL's DPOTrainer and a callback."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.trainer_utils import rotate_checkpoints
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from loralign.data.sampler import ObjectiveSampler
from loralign.errors import ConfigError, DataError, OutputError, StateError
from loralign.training.callback import GeometryCallback, non_finite
from loralign.training.checkpoint import clear_unfinished, is_whole, last_whole_checkpoint, publish, saving_directory
from loralign.training.collator import OBJECTIVE_IDS, ObjectiveCollator
from loralign.training.config import GeometryConfig
from loralign.training.metrics import StepMetrics
from loralign.training.preservation import PreservationStream, preservation_loss, tokenise_texts
from loralign.training.slices import ObjectiveMetrics, OutputRecorder, objective_metrics

PRESERVATION = "preservation"
_MIXING_LOSSES = {"aot", "aot_unpaired"}


class MultiObjectiveDPOTrainer(DPOTrainer):
    """TRL's ``DPOTrainer`` for preference data with an ``objective`` column.

    Everything that ``DPOTrainer`` takes works as there, all its per-pair losses included. Added are: a sampler that
    shows every objective to every step; objective weights from the geometry of LoRA; refinement of its subspace;
    every objective's own loss, accuracy and margin in the log; reference preservation as one more objective; and
    checkpoints that are whole or absent, from which a run resumes exactly.

    Args:
        geometry: what to measure, how to weight, when to refine.
        objectives: names and order of the objectives; by default as they come in the training data.
        target_weights: ``λ`` by name, one each by default.
        preservation_dataset: data set with a ``messages`` or ``text`` column, needed with ``preservation_weight``.
        **kwargs: as for ``DPOTrainer``.

    Raises:
        ConfigError: a loss that mixes pairs (``aot``), unknown names in ``target_weights``.
        DataError: no ``objective`` column.
    """

    _tag_names = ("trl", "dpo", "loralign")
    _name = "Multi-objective DPO"
    data_collator: Any
    precompute_ref_logps: bool
    _signature_columns: list[str]

    def __init__(
        self,
        *args: Any,
        geometry: GeometryConfig | None = None,
        objectives: Sequence[str] | None = None,
        target_weights: Mapping[str, float] | None = None,
        preservation_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        self.geometry = geometry or GeometryConfig()
        self._step_metrics: dict[str, StepMetrics] = {}
        super().__init__(*args, **kwargs)
        mixing = _MIXING_LOSSES & set(self.loss_types)
        if mixing:
            raise ConfigError(
                f"loss {sorted(mixing)[0]!r} compares pairs with each other, so no pair has a gradient of its own",
                place="loss_type",
                fix="use a per-pair loss such as sigmoid",
            )
        if "objective" not in self.train_dataset.column_names:
            raise DataError("the training data has no 'objective' column", fix="label every pair with its objective")
        labels = self.train_dataset["objective"]
        self.preferences = tuple(objectives or dict.fromkeys(labels))
        self._preservation = self._make_preservation(preservation_dataset)
        self.objectives = self.preferences + ((PRESERVATION,) if self._preservation is not None else ())
        self.target = _target(self.objectives, dict(target_weights or {}), self.geometry)
        self._labels = [self.preferences.index(label) for label in labels]
        self._sampler: ObjectiveSampler | None = None
        self._last_inputs: dict[str, Any] = {}
        self._step_metrics = {mode: StepMetrics(self.objectives) for mode in ("train", "eval", "step")}
        self.data_collator = ObjectiveCollator(self.data_collator, self.objectives)
        self.geometry_callback = GeometryCallback(
            self.objectives, self.geometry, self.target, blame=self._blame, step_record=self._step_record
        )
        # First, so that its numbers are in the log before any reporter reads it.
        self.callback_handler.callbacks.insert(0, self.geometry_callback)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` takes the last whole checkpoint, or starts anew if there is none.

        Raises:
            StateError: the named checkpoint is not whole.
        """
        output = Path(self.args.output_dir)
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = last_whole_checkpoint(output)
        elif resume_from_checkpoint:
            checkpoint = Path(str(resume_from_checkpoint))
            if not is_whole(checkpoint):
                last = last_whole_checkpoint(output)
                raise StateError(
                    "the checkpoint is not whole", place=str(checkpoint), fix=f"resume from {last or 'the beginning'}"
                )
        self.geometry_callback.resume_from(checkpoint)
        return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if self.geometry.refine_at_start and not kwargs.get("resume_from_checkpoint"):
            # Before the loop builds its optimiser, so that no moments exist yet.
            self.geometry_callback.start = self._refine_at_start
        with warnings.catch_warnings():
            # The loop reads names that transformers itself has renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return super()._inner_training_loop(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "objective" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "objective"]

    def _get_train_sampler(self, train_dataset: Any = None) -> ObjectiveSampler:
        world = self.accelerator.num_processes
        self._sampler = ObjectiveSampler(
            self._labels,
            len(self.preferences),
            step_size=self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * world,
            micro_batch=self.args.per_device_train_batch_size,
            mode=self.geometry.sampling,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The data loader forwards the epoch to its sampler, but not through the wrapper that skips batches on resume.
        if self._sampler is not None:
            self._sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        inputs = dict(inputs)
        ids = inputs.pop(OBJECTIVE_IDS, None)
        if ids is None:
            return super()._compute_loss(model, inputs, return_outputs)
        training = bool(self.model.training)
        engine = self.geometry_callback.engine
        if training and torch.is_grad_enabled() and engine is not None:
            self._last_inputs = {**inputs, OBJECTIVE_IDS: ids}
            engine.begin_batch(ids, loss_scale=1 / self._current_accumulation())
        if "ref_chosen_logps" not in inputs:
            reference = self.compute_ref_log_probs(self.model if self.ref_model is None else self.ref_model, inputs)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference
        recorder = OutputRecorder(model)
        with self._given_reference():
            result = super()._compute_loss(recorder, inputs, return_outputs)
        found = {
            objective: objective_metrics(self, recorder.outputs, inputs, ids, objective)
            for objective in sorted(set(ids.tolist()) - {-1})
        }
        for mode in ("train", "step") if training else ("eval",):
            self._step_metrics[mode].add(found)
        loss = result[0] if return_outputs else result
        if training and not bool(torch.isfinite(loss)):
            guilty = [self.objectives[objective] for objective, one in found.items() if one.loss - one.loss != 0]
            raise non_finite("loss", self.state.global_step, guilty, Path(self.args.output_dir))
        return result

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch: TRL's step, then the preservation texts, if there are any, in a pass of their own."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if self._preservation is not None:
            loss = loss + self._preservation_step(model)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add every objective's loss, accuracy and margin since the last log."""
        mode = "train" if self.model.training else "eval"
        prefix = "" if mode == "train" else "eval_"
        if mode in self._step_metrics:
            logs.update({prefix + key: value for key, value in self._step_metrics[mode].pop(self.accelerator).items()})
        if mode == "train":
            logs.update(self.geometry_callback.latest)
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing here: the run writes a card of its own once it knows its scores."""

    def _step_record(self) -> dict[str, Any]:
        return self._step_metrics["step"].record(self.accelerator)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving) if self._saving is not None else super()._get_output_dir(trial)

    _saving: Path | None = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        saving = saving_directory(output)
        if self.accelerator.is_main_process:
            clear_unfinished(output)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(output / name)
        self._saving = saving
        try:
            super()._save_checkpoint(model, trial)
            if self.accelerator.is_main_process:
                self.geometry_callback.save_state(saving / name)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                publish(saving / name, output / name)
                saving.rmdir()
        except (OSError, SafetensorError, RuntimeError) as error:
            if not _is_write_failure(error):
                raise
            last = last_whole_checkpoint(output)
            if self.accelerator.is_main_process:
                clear_unfinished(output)
            raise OutputError(
                f"the checkpoint cannot be written: {error}",
                place=str(output / name),
                fix=f"free some space and resume from {last or 'the beginning'}",
            ) from error
        finally:
            self._saving = None
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _make_preservation(self, dataset: Any) -> PreservationStream | None:
        if not self.geometry.preservation_weight:
            return None
        if dataset is None:
            raise ConfigError(
                "preservation needs texts", place="preservation_weight", fix="pass preservation_dataset=..."
            )
        return PreservationStream(
            tokenise_texts(dataset, self._tokenizer, self.args.max_length),
            self.geometry.preservation_batch_size,
            self._tokenizer.pad_token_id,
            seed=self.args.seed,
        )

    def _preservation_step(self, model: Any) -> Tensor:
        if self._preservation is None or self.geometry_callback.engine is None:
            raise ConfigError("preservation is off", place="preservation_weight")
        number = self._micro_step
        batch = self._preservation.batch(number, self.accelerator.process_index, self.accelerator.num_processes)
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        ids = torch.full((batch["input_ids"].shape[0],), len(self.objectives) - 1)
        unwrapped = self.accelerator.unwrap_model(self.model)
        reference_adapter = "ref" if "ref" in unwrapped.peft_config else None
        with (
            torch.no_grad(),
            use_adapter(unwrapped, adapter_name=reference_adapter),
            self.compute_loss_context_manager(),
        ):
            reference = unwrapped(**batch, use_cache=False).logits
        scale = 1 / self._current_accumulation()
        with self.geometry_callback.engine.batch(ids, loss_scale=scale):
            with self.compute_loss_context_manager():
                policy = model(**batch, use_cache=False).logits
                loss = preservation_loss(
                    policy, reference, batch["attention_mask"], self.geometry.preservation_direction
                )
            self.accelerator.backward(loss * scale)
        one = ObjectiveMetrics(len(ids), float(loss.detach()), float("nan"), float("nan"))
        for mode in ("train", "step"):
            self._step_metrics[mode].add({len(self.objectives) - 1: one})
        self._micro_step += 1
        return loss.detach() * scale

    _micro_step_count: int | None = None

    @property
    def _micro_step(self) -> int:
        if self._micro_step_count is None:
            self._micro_step_count = self.state.global_step * self.args.gradient_accumulation_steps
        return self._micro_step_count

    @_micro_step.setter
    def _micro_step(self, value: int) -> None:
        self._micro_step_count = value

    def _current_accumulation(self) -> int:
        return int(getattr(self, "current_gradient_accumulation_steps", 1) or 1)

    @contextmanager
    def _given_reference(self) -> Iterator[None]:
        before, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            yield
        finally:
            self.precompute_ref_logps = before

    def _refine_at_start(self) -> dict[str, Any]:
        """Give ``A`` the directions that the first batches' gradients ask for; the function stays."""
        engine = self.geometry_callback._running
        batches = iter(self.get_train_dataloader())
        per_step = self.args.gradient_accumulation_steps
        self.model.train()
        engine.capture.enabled = True
        engine.capture.reset()
        with self.accelerator.no_sync(self.model):
            for _ in range(self.geometry.refine_start_batches * per_step):
                inputs = self._prepare_inputs(next(batches))
                with self.compute_loss_context_manager():
                    loss = self._compute_loss(self.model, inputs, False)
                loss.backward()
                engine.end_batch()
        self.model.zero_grad(set_to_none=True)
        for metrics in self._step_metrics.values():
            metrics.clear()
        self._metrics["train"].clear()
        return engine.refine_captured()

    def _blame(self) -> list[str]:
        """Objectives whose own gradient on the last micro-batch is not finite: one more pass, measured."""
        if not self._last_inputs:
            return []
        engine = self.geometry_callback._running
        engine.capture.enabled = True
        engine.capture.reset()
        with self.accelerator.no_sync(self.model):
            loss = self._compute_loss(self.model, self._last_inputs, False)
            loss.backward()
        engine.end_batch()
        finite = engine.capture.statistics().full.diagonal().isfinite()
        return [name for name, good in zip(self.objectives, finite.tolist(), strict=True) if not good]


def _target(objectives: Sequence[str], weights: dict[str, float], geometry: GeometryConfig) -> Tensor:
    if PRESERVATION in objectives:
        weights.setdefault(PRESERVATION, geometry.preservation_weight)
    unknown = sorted(set(weights) - set(objectives))
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is no objective", place="target_weights", fix=f"objectives are {', '.join(objectives)}"
        )
    values = torch.tensor([float(weights.get(name, 1.0)) for name in objectives], dtype=torch.float64)
    if not bool((values.isfinite() & (values > 0)).all()):
        raise ConfigError(f"weights {values.tolist()} must be positive and finite", place="target_weights")
    return values


def _is_write_failure(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (OSError, SafetensorError)) or "writ" in text or "stream" in text
