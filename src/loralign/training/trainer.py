"""Multi-objective DPO with LoRA's geometry measured and corrected: TRL's DPOTrainer and a callback."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from loralign.data.sampler import ObjectiveSampler
from loralign.errors import ConfigError, DataError
from loralign.training.callback import GeometryCallback, non_finite
from loralign.training.collator import OBJECTIVE_IDS, ObjectiveCollator
from loralign.training.config import GeometryConfig
from loralign.training.measuring import MeasuredGeometry
from loralign.training.metrics import StepMetrics
from loralign.training.preserving import PreservationObjective
from loralign.training.saving import WholeCheckpoints
from loralign.training.slices import OutputRecorder, objective_metrics

PRESERVATION = "preservation"
_MIXING_LOSSES = {"aot", "aot_unpaired"}


class MultiObjectiveDPOTrainer(WholeCheckpoints, PreservationObjective, MeasuredGeometry, DPOTrainer):
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
        check_losses(kwargs.get("args") or next((one for one in args if isinstance(one, DPOConfig)), None))
        super().__init__(*args, **kwargs)
        if "objective" not in self.train_dataset.column_names:
            raise DataError("the training data has no 'objective' column", fix="label every pair with its objective")
        labels = self.train_dataset["objective"]
        self.preferences = tuple(objectives or dict.fromkeys(labels))
        self._preservation = self._make_preservation(self.geometry, preservation_dataset)
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
        # First, so that its state is there before any other callback's turn.
        self.callback_handler.callbacks.insert(0, self.geometry_callback)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Counted from the step that this training begins at, not from that at which another was cut off.
        self._micro_step = None
        if self.geometry.refine_at_start and not kwargs.get("resume_from_checkpoint"):
            # Before the loop builds its optimiser, so that no moments exist yet.
            self.geometry_callback.start = self._refine_at_start
        with warnings.catch_warnings():
            # The loop reads names that transformers itself has renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            try:
                return super()._inner_training_loop(*args, **kwargs)
            finally:
                # A training that is cut off never comes to its end's own event.
                self.geometry_callback.close()

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
        # Once here, since all that follows reads them on the host.
        ids = ids.cpu()
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
        found = objective_metrics(self, recorder.outputs, inputs, ids)
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
        engine = self.geometry_callback.running
        engine.capture.enabled = True
        engine.capture.reset()
        self._accumulate_gradients(self.geometry.refine_start_batches * self.args.gradient_accumulation_steps)
        return engine.refine_captured()

    def _blame(self) -> list[str]:
        """Objectives whose own gradient on the last micro-batch is not finite: one more pass, measured."""
        if not self._last_inputs:
            return []
        engine = self.geometry_callback.running
        engine.capture.enabled = True
        engine.capture.reset()
        with self.accelerator.no_sync(self.model):
            loss = self._compute_loss(self.model, self._last_inputs, False)
            loss.backward()
        engine.end_batch()
        finite = engine.capture.statistics().full.diagonal().isfinite()
        return [name for name, good in zip(self.objectives, finite.tolist(), strict=True) if not good]


def check_losses(config: DPOConfig | None) -> None:
    """Refuse losses that mix pairs, before the base class makes the output directory.

    Raises:
        ConfigError: ``aot`` or ``aot_unpaired`` among the losses.
    """
    mixing = sorted(_MIXING_LOSSES & set(config.loss_type if config is not None else ()))
    if mixing:
        raise ConfigError(
            f"loss {mixing[0]!r} compares pairs with each other, so no pair has a gradient of its own",
            place="loss_type",
            fix="use a per-pair loss such as sigmoid",
        )


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
