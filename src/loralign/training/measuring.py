"""The trainer's measurements without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from trl import DPOTrainer

from loralign.capture import GradientStatistics
from loralign.geometry.shared import (
    SHARED_DIRECTIONS,
    WithoutShared,
    check_shared_count,
    shared_directions,
    without_shared,
)
from loralign.training.metrics import StepMetrics

if TYPE_CHECKING:
    from loralign.training.callback import GeometryCallback
    from loralign.training.engine import GeometryEngine


class MeasuredGeometry(DPOTrainer):
    """Mixin: the gradients of training batches at the current adapter, without a step."""

    geometry_callback: GeometryCallback
    _step_metrics: dict[str, StepMetrics]
    _metrics: Any

    def measure_geometry(self, batches: int = 1) -> GradientStatistics:
        """Measure the objectives' gradients at the current adapter, without training.

        Args:
            batches: optimiser steps' worth of training batches to take in, from the beginning of epoch 0.

        Returns:
            Statistics normalised to every objective's own mean loss, over all processes.
        """
        with self._measuring() as engine:
            # One micro-batch first, to find the directions that all gradients share.
            self._measure(engine, 1)
            self._measure(engine, batches * self.args.gradient_accumulation_steps)
            return engine.capture.statistics("mean")

    def measure_without_shared(self, directions: int = SHARED_DIRECTIONS, batches: int = 1) -> WithoutShared:
        """Measure the gradients as a whole, and without the input directions that all objectives share most.

        The batches are gone through twice: for the directions, and along them.

        Args:
            directions: input directions per layer to take out.
            batches: as in :meth:`measure_geometry`.

        Returns:
            Both statistics, normalised to every objective's own mean loss, over all processes.

        Raises:
            ConfigError: more directions than the layers or the sketch can have.
        """
        with self._measuring() as engine:
            check_shared_count(directions, engine.capture)
            micro_batches = batches * self.args.gradient_accumulation_steps
            self._measure(engine, micro_batches)
            shared = [shared_directions(stack, directions) for stack in engine.capture.stacks()]
            self._measure(engine, micro_batches, shared)
            return without_shared(engine.capture, shared)

    @contextmanager
    def _measuring(self) -> Iterator[GeometryEngine]:
        callback = self.geometry_callback
        own = callback.engine is None
        if own:
            callback.attach(self.model, self.args.seed)
        try:
            yield callback.running
        finally:
            if own:
                callback.close()

    def _measure(self, engine: GeometryEngine, micro_batches: int, directions: Sequence[Tensor] | None = None) -> None:
        engine.capture.enabled = True
        engine.capture.reset(directions)
        self._accumulate_gradients(micro_batches)
        # Summed over processes, so that all of them find the same directions in it.
        engine.gather()

    def _accumulate_gradients(self, micro_batches: int) -> None:
        self.model.train()
        loader = self.get_train_dataloader()
        loader.set_epoch(0)
        batches = iter(loader)
        with self.accelerator.no_sync(self.model):
            for done in range(micro_batches):
                inputs = next(batches, None)
                if inputs is None:
                    loader.set_epoch(done)
                    batches = iter(loader)
                    inputs = next(batches)
                with self.compute_loss_context_manager():
                    loss = self._compute_loss(self.model, self._prepare_inputs(inputs), False)
                loss.backward()
                self.geometry_callback.running.end_batch()
        self.model.zero_grad(set_to_none=True)
        for metrics in self._step_metrics.values():
            metrics.clear()
        self._metrics["train"].clear()
