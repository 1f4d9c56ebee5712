"""Holding the alignment-critical part of an update over training steps, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loralign.data.completions import Completion
from loralign.errors import ConfigError, DataError, StateError
from loralign.guard import (
    AlignmentSubspace,
    GuardMonitors,
    GuardWarning,
    PenaltyWeights,
    ProbeSet,
    TaskCurvature,
    ascent_rate,
    estimate_curvature,
)
from loralign.guard.curvature import CurvatureKind
from loralign.guard.losses import completion_losses
from loralign.lora import LoraFactors, lora_layers
from loralign.training.guard_config import GuardConfig
from loralign.training.guard_hold import SubspaceHold
from loralign.training.reestimation import estimate_again, of_other_samples

_STATE_VERSION = 1


@dataclass(frozen=True)
class GuardData:
    """What a guard measures on; each part may be missing, and what needs it is then not done.

    Attributes:
        probe: prompts with responses that must survive, for drift; not those that the subspace was estimated on.
        alignment: what the subspace was estimated on, to estimate it again.
        task: samples of the task, for its curvature.
        held_back: held-back samples of the task, whose loss the monitors watch.
        refusal_rate: share of the probe's unsafe prompts that the model refuses, by generating answers.
        pad_id: the tokenizer's padding.
    """

    probe: Sequence[Completion] = ()
    alignment: Sequence[Completion] = ()
    task: Sequence[Completion] = ()
    held_back: Sequence[Completion] = ()
    refusal_rate: Callable[[nn.Module], float] | None = None
    pad_id: int = 0


def check_guard(model: nn.Module, subspace: AlignmentSubspace | None, config: GuardConfig, data: GuardData) -> None:
    """Check that a guard can begin on a model, before anything is trained.

    Args:
        model: the PEFT model itself; its adapter must be fresh (``B = 0``), since ``ΔW`` is what it adds to the model
            that is to be preserved.
        subspace: of that model, or ``None``.
        config: what to do when.
        data: what to measure on.

    Raises:
        AdapterError: the subspace covers none of the adapter's layers, or only some.
        StateError: the subspace belongs to another model.
        ConfigError: an adapter that is not fresh, a budget without a probe or without what would hold it, a curvature
            without task data.
    """
    layers = lora_layers(model)
    if config.drift_budget is not None and not data.probe:
        raise ConfigError("a budget needs a probe set", place="drift_budget", fix="pass prompts with responses")
    if config.drift_budget is not None and subspace is None:
        raise ConfigError("a budget holds nothing without a subspace", place="drift_budget", fix="pass a subspace")
    if any(bool(layer.B.detach().any()) for layer in layers):
        raise ConfigError(
            "the adapter already changes the model that is to be preserved",
            place="guard",
            fix="merge it into its base and start a fresh one",
        )
    if subspace is None:
        return
    subspace.check(model)
    subspace.match(layers, partial=config.guard_partial)
    if config.task_curvature != "identity" and not data.task:
        raise ConfigError(
            f"curvature {config.task_curvature!r} is estimated from task data",
            place="task_curvature",
            fix="pass task samples or use identity",
        )


class GuardEngine:
    """The guard of one training run.

    A loop calls :meth:`start` once, then per optimiser step :meth:`begin_step` before the first backward pass, while
    no gradients stand, and :meth:`finish_step` after the optimiser's step.

    Args:
        model: the PEFT model itself, not a wrapper around it.
        subspace: the alignment-critical subspace of that model; ``None`` holds nothing and measures drift only.
        config: what to do when.
        data: what to measure on.
        seed: of everything random.

    Raises:
        AdapterError: the subspace covers none of the adapter's layers, or only some.
    """

    def __init__(
        self,
        model: nn.Module,
        subspace: AlignmentSubspace | None,
        config: GuardConfig,
        data: GuardData | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.config = config
        self.data = data or GuardData()
        self.seed = seed
        self.layers: list[LoraFactors] = lora_layers(model)
        self.controller = config.make_controller()
        self.monitors = GuardMonitors()
        self.hold: SubspaceHold | None = None
        self.probe: ProbeSet | None = None
        if self.data.probe and config.probe_every > 0:
            tokens = config.probe_tokens or None
            self.probe = ProbeSet(self.data.probe, pad_id=self.data.pad_id, response_tokens=tokens)
        self._subspace = subspace
        if subspace is not None and config.task_curvature == "identity":
            self.hold = SubspaceHold(self.layers, subspace, config, seed=seed)

    def start(self, total_steps: int) -> list[dict[str, Any]]:
        """Measure the start: the probe's own side, the task's curvature, the refusal rate. Returns records to log.

        Raises:
            LoralignError: as :func:`check_guard`.
        """
        check_guard(self.model, self._subspace, self.config, self.data)
        self.monitors.total_steps = total_steps
        self._cache_probe()
        self._measure_curvature()
        records = [] if self.probe is None else self._probed(self.probe, -1)
        records += self._watch_task(-1) + self._other_samples()
        if self.data.refusal_rate is not None and self.config.refusal_every:
            records += self._refusals(self.data.refusal_rate, -1)
        return records

    def begin_step(self, step: int, scale: float = 1.0) -> None:
        """Seed the gradients with the penalty's, where it acts in the loss.

        Args:
            step: optimiser step, from 0.
            scale: factor on the loss, such as a gradient scaler's.
        """
        if self.hold is not None:
            self.hold.seed_gradients(self.weights, scale)

    def finish_step(
        self, step: int, optimizer: torch.optim.Optimizer | None = None, *, stepped: bool = True
    ) -> list[dict[str, Any]]:
        """After the optimiser's step: act on the factors, measure drift, follow the budget. Returns records to log.

        Args:
            step: optimiser step, from 0.
            optimizer: whose learning rates a decoupled penalty takes.
            stepped: whether the optimiser did step; a gradient scaler may have skipped it.
        """
        records: list[dict[str, Any]] = []
        if self.hold is not None and self._reestimation_due(step):
            # First of all, so that what acts on this step's update is the subspace of the weights as they are now.
            records += self._reestimate(self.hold, step)
        if self.hold is not None and stepped:
            acted = self.hold.act(self.weights, self.strength, optimizer)
            if acted is not None:
                records.append({"kind": "guard", "step": step, "multiplier": self.multiplier, **acted})
        if self.probe is not None and _due(step, self.config.probe_every):
            records += self._probed(self.probe, step) + self._watch_task(step)
        if self.data.refusal_rate is not None and _due(step, self.config.refusal_every):
            records += self._refusals(self.data.refusal_rate, step)
        return records

    def task_loss(self, step: int, loss: float) -> list[dict[str, Any]]:
        """Tell the monitors of the task's loss on held-back samples; returns warnings to log."""
        return _warned(self.monitors.task_loss(loss, step))

    @property
    def multiplier(self) -> float:
        """By which the budget has raised the penalties' weights; 1 where they are fixed."""
        return 1.0 if self.controller is None else self.controller.multiplier

    @property
    def weights(self) -> PenaltyWeights:
        """The penalty weights in force."""
        return self.config.penalty_weights(self.multiplier)

    @property
    def strength(self) -> float:
        """Share of the part in the subspace that ``project`` takes out: under a budget what the multiplier asks for."""
        if self.controller is None:
            return self.config.project_strength
        return self.config.project_strength * self.multiplier / (1.0 + self.multiplier)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but tensors: ready for JSON."""
        return {
            "version": _STATE_VERSION,
            "hold": None if self.hold is None else self.hold.state_dict(),
            "controller": None if self.controller is None else self.controller.state_dict(),
            "monitors": self.monitors.state_dict(),
        }

    def tensor_state(self) -> dict[str, Tensor]:
        """The tensors that belong to :meth:`state_dict`, ready for safetensors."""
        return {} if self.hold is None else self.hold.tensor_state()

    def load_state_dict(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue from a saved state; the start's side is measured again, with the update taken out meanwhile.

        Raises:
            StateError: another version, another kind of guard, or a subspace of other layers.
        """
        if state.get("version") != _STATE_VERSION:
            raise StateError(f"guard state of version {state.get('version')!r} is not understood")
        for name, own in (("hold", self._subspace), ("controller", self.controller)):
            if (state[name] is None) != (own is None):
                raise StateError("the saved run was guarded in another way", place=name, fix="resume it as it was")
        # Beside A and B an adapter may train a head or biases, which only PEFT can switch off.
        disabled = getattr(self.model, "disable_adapter", nullcontext)
        with self._update_removed():
            with disabled():
                self._cache_probe()
            self._measure_curvature()
        if self.hold is not None:
            self.hold.load_state_dict(state["hold"], tensors)
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        self.monitors.load_state_dict(state["monitors"])

    def _cache_probe(self) -> None:
        if self.probe is not None:
            self.probe.cache(self.model)

    def _measure_curvature(self) -> None:
        if self._subspace is not None and self.config.task_curvature != "identity":
            self.hold = SubspaceHold(self.layers, self._subspace, self.config, self._task_curvature(), self.seed)

    def _task_curvature(self) -> Sequence[TaskCurvature]:
        kind: CurvatureKind = "kronecker" if self.config.task_curvature == "kronecker" else "diagonal"
        samples = list(self.data.task)[: self.config.curvature_samples]
        # They have the run's own length already.
        longest = max(len(one.ids) for one in samples)
        return estimate_curvature(
            self.model, samples, kind=kind, seed=self.seed, max_length=longest, show_progress=False
        )

    @contextmanager
    def _update_removed(self) -> Iterator[None]:
        """The model as it was at the start: ``B = 0``, where ``A`` has no say."""
        factors = [layer.B.detach().clone() for layer in self.layers]
        try:
            with torch.no_grad():
                for layer in self.layers:
                    layer.B.zero_()
            yield
        finally:
            with torch.no_grad():
                for layer, factor in zip(self.layers, factors, strict=True):
                    layer.B.copy_(factor)

    def _probed(self, probe: ProbeSet, step: int) -> list[dict[str, Any]]:
        drift = probe.measure(self.model)
        record: dict[str, Any] = {
            "kind": "probe",
            "step": step,
            "kl": drift.kl,
            "logprob_lost": drift.logprob_lost,
            "entropy": drift.entropy,
        }
        warnings: list[GuardWarning] = []
        if self.hold is not None:
            record["share"] = self.hold.share()
        if self.controller is not None:
            if step < 0:
                self.controller.check_start(drift.kl)
            else:
                if self.config.control_rate is None:
                    # Here, since a resumed run may be longer than it was to be.
                    self.controller.rate = ascent_rate((self.monitors.total_steps or 0) // self.config.probe_every)
                self.controller.update(drift.kl, drift.entropy - probe.start_entropy)
            record |= {"budget": self.controller.budget, "multiplier": self.controller.multiplier}
            warnings += self.monitors.drift(drift.kl, self.controller.budget, step)
        if self.hold is not None and self.config.guard_projection == "soft":
            cosine = self.hold.coupling()
            record["cosine"] = cosine
            warnings += self.monitors.coupling(cosine, step)
        return [record, *_warned(warnings)]

    def _refusals(self, measure: Callable[[nn.Module], float], step: int) -> list[dict[str, Any]]:
        rate = measure(self.model)
        record = {"kind": "refusal", "step": step, "rate": rate}
        return [record, *_warned(self.monitors.refusals(rate, step))]

    def _watch_task(self, step: int) -> list[dict[str, Any]]:
        """The loss on the held-back samples; a poor one beside alignment that holds is a failure signature."""
        if not self.data.held_back:
            return []
        loss = float(completion_losses(self.model, self.data.held_back, pad_id=self.data.pad_id).mean())
        return [{"kind": "task", "step": step, "loss": loss}, *self.task_loss(step, loss)]

    def _reestimation_due(self, step: int) -> bool:
        if not self._reestimates:
            return False
        total = self.monitors.total_steps
        # A penalty would not act on what is found after the last step.
        last = total is not None and step + 1 >= total and self.config.guard_mode == "penalty"
        return not last and _due(step, self.config.reestimation_interval(total))

    def _other_samples(self) -> list[dict[str, Any]]:
        """A warning where estimates in mid-training are of other samples than the first one."""
        if (
            self.hold is None
            or not self._reestimates
            or not of_other_samples(self.hold.subspace.info, self.data.alignment)
        ):
            return []
        message = (
            f"the subspace is of {self.hold.subspace.info.samples} samples that are not the {len(self.data.alignment)} "
            "of the alignment data, which it will be estimated from in mid-training"
        )
        fix = "name the data that it was estimated from, or set reestimate_every to 0"
        return [{"kind": "warning", "step": -1, "code": "other_samples", "message": message, "fix": fix}]

    @property
    def _reestimates(self) -> bool:
        """Whether the subspace is estimated again at all."""
        if self.hold is None or self.config.guard_mode == "measure" or not self.data.alignment:
            return False
        # A control that became what it is to be compared with would be none.
        return self.config.reestimate_every > 0 and self.hold.subspace.info.kind != "random"

    def _reestimate(self, hold: SubspaceHold, step: int) -> list[dict[str, Any]]:
        before = hold.subspace
        try:
            found = estimate_again(self.model, self.data.alignment, before, self.seed + step + 1)
        except DataError as error:
            # No reason to stop a run that has a subspace already.
            return [
                {
                    "kind": "warning",
                    "step": step,
                    "code": "not_reestimated",
                    "message": f"the subspace was not estimated again: {error.problem}",
                    "fix": error.fix or "give more samples",
                }
            ]
        similarity = before.similarity(found)
        hold.replace(found)
        record = {
            "kind": "reestimate",
            "step": step,
            "similarity": sum(similarity.values()) / len(similarity),
            "least": min(similarity.values()),
        }
        return [record, *_warned(self.monitors.stability(similarity, step))]


def _due(step: int, every: int) -> bool:
    return every > 0 and (step + 1) % every == 0


def _warned(warnings: Sequence[GuardWarning]) -> list[dict[str, Any]]:
    return [
        {"kind": "warning", "step": one.step, "code": one.code, "message": one.message, "fix": one.fix}
        for one in warnings
    ]
