"""The trainer's part of reference preservation: one more forward and backward pass per micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from loralign.errors import ConfigError
from loralign.training.metrics import StepMetrics
from loralign.training.preservation import PreservationStream, preservation_loss, tokenise_texts
from loralign.training.slices import ObjectiveMetrics

if TYPE_CHECKING:
    from loralign.training.callback import GeometryCallback
    from loralign.training.config import GeometryConfig


class PreservationObjective(DPOTrainer):
    """Mixin: a pass over preservation texts, an objective like the others, after every micro-batch of pairs."""

    objectives: tuple[str, ...]
    geometry_callback: GeometryCallback
    _preservation: PreservationStream | None = None
    _step_metrics: dict[str, StepMetrics]
    _micro_step: int | None = None

    def _make_preservation(self, geometry: GeometryConfig, dataset: Any) -> PreservationStream | None:
        if not geometry.preservation_weight:
            return None
        if dataset is None:
            raise ConfigError(
                "preservation needs texts", place="preservation_weight", fix="pass preservation_dataset=..."
            )
        return PreservationStream(
            tokenise_texts(dataset, self._tokenizer, self.args.max_length),
            geometry.preservation_batch_size,
            self._tokenizer.pad_token_id,
            seed=self.args.seed,
        )

    def _preservation_step(self, model: Any) -> Tensor:
        if self._preservation is None or self.geometry_callback.engine is None:
            raise ConfigError("preservation is off", place="preservation_weight")
        if self._micro_step is None:
            # Counted on from here, so that a resumed run goes on with the texts where it stopped.
            self._micro_step = self.state.global_step * self.args.gradient_accumulation_steps
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
        scale = 1 / (getattr(self, "current_gradient_accumulation_steps", 1) or 1)
        with self.geometry_callback.engine.batch(ids, loss_scale=scale):
            with self.compute_loss_context_manager():
                policy = model(**batch, use_cache=False).logits
                loss = preservation_loss(
                    policy, reference, batch["attention_mask"], self.geometry_callback.config.preservation_direction
                )
            self.accelerator.backward(loss * scale)
        one = ObjectiveMetrics(len(ids), float(loss.detach()), float("nan"), float("nan"))
        for mode in ("train", "step"):
            self._step_metrics[mode].add({len(self.objectives) - 1: one})
        self._micro_step = number + 1
        return loss.detach() * scale
