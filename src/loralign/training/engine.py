"""Measuring, weighting and refining over training steps, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loralign.capture import GradientCapture, GradientReweighting, GradientStatistics
from loralign.errors import StateError
from loralign.geometry import RefinementReport, UpdateWindow, refine, step_distortion
from loralign.geometry.tangent import step_norm
from loralign.training.config import GeometryConfig
from loralign.training.records import measurement_record, named, refinement_record

_STATE_VERSION = 1


class GeometryEngine:
    """The geometry correction of one training run.

    A loop calls, per optimiser step: :meth:`begin_step`; around every backward pass ``with engine.batch(ids):``; then
    :meth:`finish_backward` before the optimiser's step and :meth:`finish_step` after it. The callback and the trainer
    of this room are such loops; another one may use the engine directly.

    Args:
        model: the PEFT model itself, not a wrapper around it.
        objectives: the ``K`` names.
        target: ``λ (K,)``.
        config: what to do when.
        seed: of sketches and refinement.
    """

    def __init__(
        self, model: nn.Module, objectives: Sequence[str], target: Tensor, config: GeometryConfig, seed: int = 0
    ) -> None:
        self.model = model
        self.objectives = tuple(objectives)
        self.target = target.double()
        self.config = config
        self.seed = seed
        self.capture = GradientCapture(
            model, objectives, sketch_size=config.sketch_size, exact=config.exact_gradients, seed=seed
        )
        self.capture.enabled = False
        self.reweighting = GradientReweighting(model, objectives)
        self.smoothing = config.make_smoothing()
        self.window = UpdateWindow(self.capture.layers) if config.refine_mode == "accumulated" else None
        self.refinements = 0
        self._before: list[tuple[Tensor, Tensor]] | None = None
        self._statistics: GradientStatistics | None = None
        self._record: dict[str, Any] | None = None
        self._share_unit = 1.0
        self.reweighting.set_weights(self.target)

    def measures_at(self, step: int) -> bool:
        """Whether optimiser step ``step`` (counted from 0) is measured: the schedule, and before a refinement."""
        every = self.config.measure_every
        return (every > 0 and step % every == 0) or (self._refines_after(step) and self._needs_gradients())

    def begin_step(self, step: int) -> None:
        """Open an optimiser step."""
        self.capture.enabled = self.measures_at(step)
        if self.capture.pending:
            # Also where nothing is measured now: the sums of the last measurement are memory.
            self.capture.reset()

    @contextmanager
    def batch(
        self, objective_ids: Tensor, *, loss_scale: float = 1.0, sample_weights: Tensor | None = None
    ) -> Iterator[None]:
        """Weight, and on measured steps capture, the backward passes inside the block."""
        self.begin_batch(objective_ids, loss_scale=loss_scale, sample_weights=sample_weights)
        try:
            yield
        finally:
            self.end_batch()

    def begin_batch(
        self, objective_ids: Tensor, *, loss_scale: float = 1.0, sample_weights: Tensor | None = None
    ) -> None:
        """Open a block by hand; a block still open is closed first."""
        self.end_batch()
        # One copy for both, which read them on the host.
        objective_ids = objective_ids.cpu()
        self.reweighting.begin(objective_ids)
        if self.capture.enabled:
            self.capture.begin(objective_ids, loss_scale=loss_scale, sample_weights=sample_weights)

    def end_batch(self) -> None:
        """Close the block, if one is open."""
        self.reweighting.end()
        self.capture.end()

    def finish_backward(self, step: int, *, loss_total: float | None = None) -> GradientStatistics | None:
        """After the last backward pass of a step: read the measurement and put new weights in force from the next step.

        Statistics are summed over processes first, so every process finds the same weights.

        Args:
            step: optimiser step, from 0.
            loss_total: for a loss that is a sum divided by a total over all batches and processes, such as a count of
                tokens: this process's part of the total, ``loss_scale`` of each batch having been its own part.
        """
        self.end_batch()
        if not self.capture.enabled:
            return None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.capture.all_reduce()
        self._share_unit = 1.0 if loss_total is None else self._mean_over_processes(loss_total)
        statistics = self.capture.statistics("mean")
        statistics = statistics.scaled(torch.full((len(self.objectives),), self._share_unit))
        in_force = self.reweighting.weights
        weights = self.smoothing.update(statistics, self.target)
        self.reweighting.set_weights(weights)
        self._statistics = statistics
        self._before = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in self.capture.layers]
        self._record = measurement_record(
            step, statistics, self.smoothing.average, self.target, weights, in_force, self.smoothing.skipped
        )
        return statistics

    def finish_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> list[dict[str, Any]]:
        """After the optimiser's step: the distortion of the step taken, then a refinement if one is due.

        Returns:
            The records to log, each a mapping of plain values.
        """
        records = []
        if self._record is not None:
            self._record["step_distortion"] = self._step_distortion()
            records.append(self._record)
        if self._refines_after(step):
            report = self.refine(optimizer)
            records.append(refinement_record(step, report))
        self._record = self._statistics = self._before = None
        return records

    def refine(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        mode: str | None = None,
        measure: Callable[[], GradientStatistics] | None = None,
    ) -> RefinementReport:
        """Refine now, from the gradients last captured where the mode needs them; equal on all processes."""
        report = refine(
            self.model,
            optimizer,
            mode=mode or self.config.refine_mode,
            capture=self.capture if self._needs_gradients(mode) else None,
            window=self.window,
            target=self.target,
            tolerance=self.config.refine_tolerance,
            emphasis=self.config.refine_emphasis,
            scale=self.config.refine_scale,
            moments=self.config.refine_moments,
            seed=self.seed + self.refinements,
            measure=measure,
        )
        self.refinements += 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for layer in self.capture.layers:
                dist.broadcast(layer.A.data, src=0)
                dist.broadcast(layer.B.data, src=0)
        return report

    def gather(self) -> None:
        """End what is captured outside a step, and sum it over all processes."""
        self.end_batch()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.capture.all_reduce()
        self.capture.enabled = False

    def refine_captured(self) -> dict[str, Any]:
        """Refine from what has been captured outside a step, as at the start of training; returns the record.

        A mode that needs no gradients has nothing to begin with at the start, so ``balanced`` takes its place.
        """
        self.gather()
        before = self.capture.statistics("mean")
        mode = self.config.refine_mode if self._needs_gradients() else "balanced"
        report = self.refine(mode=mode)
        if self.window is not None:
            self.window.mark()
        record = refinement_record(-1, report)
        record["attenuation_before"] = named(self.objectives, before.attenuation())
        self.capture.reset()
        return record

    def close(self) -> None:
        """Remove every hook from the model."""
        self.capture.close()
        self.reweighting.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but tensors: ready for JSON."""
        return {
            "version": _STATE_VERSION,
            "objectives": list(self.objectives),
            "target": self.target.tolist(),
            "capture": self.capture.state_dict(),
            "smoothing": self.smoothing.state_dict(),
            "weights": self.reweighting.weights.tolist(),
            "refinements": self.refinements,
        }

    def tensor_state(self) -> dict[str, Tensor]:
        """The tensors that belong to :meth:`state_dict`, ready for safetensors."""
        window = {} if self.window is None else self.window.state_dict()
        return {**_prefixed("window.", window), **_prefixed("capture.", self.capture.tensor_state())}

    def load_state_dict(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            StateError: another version, other objectives or target weights.
        """
        if state.get("version") != _STATE_VERSION:
            raise StateError(f"geometry state of version {state.get('version')!r} is not understood")
        if tuple(state["objectives"]) != self.objectives or state["target"] != self.target.tolist():
            raise StateError(
                f"the saved run has objectives {state['objectives']} with weights {state['target']}",
                fix="resume with the objectives and target weights of the saved run",
            )
        self.capture.load_state_dict(state["capture"], _without("capture.", tensors))
        self.smoothing.load_state_dict(state["smoothing"])
        self.reweighting.set_weights(torch.tensor(state["weights"], dtype=torch.float64))
        self.refinements = int(state["refinements"])
        if self.window is not None:
            self.window.load_state_dict(_without("window.", tensors))

    def _refines_after(self, step: int) -> bool:
        return self.config.refine_every > 0 and (step + 1) % self.config.refine_every == 0

    def _needs_gradients(self, mode: str | None = None) -> bool:
        return (mode or self.config.refine_mode) in ("gradient", "balanced")

    def _mean_over_processes(self, value: float) -> float:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return value
        total = torch.tensor([value], device=self.capture.layers[0].A.device)
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def _step_distortion(self) -> float | None:
        if self._statistics is None or self._before is None:
            return None
        steps = [
            (layer.A.detach() - A, layer.B.detach() - B)
            for layer, (A, B) in zip(self.capture.layers, self._before, strict=True)
        ]
        parts = [
            (layer.scaling, A, B, *step)
            for layer, (A, B), step in zip(self.capture.layers, self._before, steps, strict=True)
        ]
        inner = self._share_unit * self.capture.step_inner(steps, normalise="mean")
        value = step_distortion(self._statistics, self.target, inner, step_norm(parts))
        return value if value == value else None


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
