"""What a guard leaves in a run's directory, as plain immutable records: the same in ``adapt`` and in ``align``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loralign.report.records import Metric, Numbers

START = -1
"""The step that stands for the start, before anything was trained."""

UNGUARDED = ("none", "measure")
"""Modes in which nothing acts on the update."""


@dataclass(frozen=True)
class TaskStep:
    """The task's loss at an optimiser step, in nats per response token, as the trainer logged it."""

    step: int
    loss: float | None
    learning_rate: float | None = None
    gradient_norm: float | None = None


@dataclass(frozen=True)
class GuardStep:
    """What the guard did at an optimiser step.

    Attributes:
        multiplier: by which a budget has raised the penalties' weights; 1 where they are fixed.
        strength: share of the part in the subspace that a projection took out; ``None`` under penalties.
        weights: ``λ`` of ``alignment``, ``stability`` and ``collision``; empty under projection.
        penalty: the terms before their weights, ``alignment``, ``stability``, ``overlap`` and ``geodesic``, and
            ``total`` after them.
    """

    step: int
    multiplier: float | None
    strength: float | None = None
    weights: Numbers = field(default_factory=dict)
    penalty: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """A measurement on the probe set; step −1 is the start.

    Attributes:
        kl: drift, ``KL(start ‖ now)`` in nats per response token.
        logprob_lost: log-probability that the probe's responses lost, in nats per token.
        entropy: predictive entropy, in nats.
        share: share of the update's squared norm in the alignment subspace.
        budget: what drift is to stay within, in the unit of ``kl``.
        multiplier: that the budget asks for from here on.
    """

    step: int
    kl: float | None
    logprob_lost: float | None = None
    entropy: float | None = None
    share: float | None = None
    budget: float | None = None
    multiplier: float | None = None


@dataclass(frozen=True)
class Reestimate:
    """A new estimate of the subspace: mean and least squared cosine to the one before, over layers."""

    step: int
    similarity: float | None
    least: float | None


@dataclass(frozen=True)
class RefusalRate:
    """Share of the probe's unsafe prompts that were refused at a step."""

    step: int
    rate: float | None


@dataclass(frozen=True)
class GuardWarning:
    """A failure signature that a monitor saw, and what to change."""

    step: int
    code: str
    message: str
    fix: str


@dataclass(frozen=True)
class Subspace:
    """The alignment subspace: plain facts on where it comes from, and numbers (``rank``, ``energy``, …) per layer."""

    facts: dict[str, Any]
    layers: dict[str, Numbers]


@dataclass(frozen=True)
class Safety:
    """Refusals of one model.

    Attributes:
        refusal: share of unsafe prompts refused.
        over_refusal: share of safe prompts refused.
        categories: share refused by label (``unsafe`` or ``safe``) and category, in the order of the file.
        prompts: how many there are by label and category; the category is empty for all of a label.
    """

    refusal: Metric | None
    over_refusal: Metric | None
    categories: dict[tuple[str, str], Metric] = field(default_factory=dict)
    prompts: dict[tuple[str, str], float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class GuardScores:
    """What became of what had to survive, each with its bootstrap interval.

    Attributes:
        drift: ``KL(start ‖ now)`` on the probe's responses, nats per token.
        logprob_lost: log-probability that those responses lost, nats per token.
        safety_before, safety_after: refusals, ``None`` where no answers were judged.
        share: share of the update's squared norm in the alignment subspace, ``None`` without one.
    """

    drift: Metric | None
    logprob_lost: Metric | None
    safety_before: Safety | None
    safety_after: Safety | None
    share: float | None


@dataclass(frozen=True)
class GuardedRun:
    """What a guard did in a run, whatever the run trained for.

    Attributes:
        guard: ``auto``, ``none`` or the directory of a subspace, as it was asked for.
        mode: ``none``, ``measure``, ``penalty`` or ``project``; ``unknown`` where the run does not say.
        budget: drift that may be lost, in nats per token; ``None`` without a budget.
        subspace: what the guard held, ``None`` without one.
        steps: the training loss.
        held_back: the loss of held-back task samples that the monitors watch.
        guard_steps, probes, reestimates, refusals, warnings: what happened, by ascending step.
        scores: ``None`` until the run has finished, and where it scored none of this.
        recorded: optimiser steps taken as the run itself says, ``None`` where it does not.
        config, data: nested settings as written by the run.
    """

    guard: str
    mode: str
    budget: float | None
    subspace: Subspace | None
    steps: tuple[TaskStep, ...]
    held_back: tuple[TaskStep, ...]
    guard_steps: tuple[GuardStep, ...]
    probes: tuple[Probe, ...]
    reestimates: tuple[Reestimate, ...]
    refusals: tuple[RefusalRate, ...]
    warnings: tuple[GuardWarning, ...]
    scores: GuardScores | None
    config: dict[str, Any]
    data: dict[str, Any]
    recorded: int | None

    @property
    def measured(self) -> tuple[Probe, ...]:
        """The probes during training that have a drift."""
        return tuple(probe for probe in self.probes if probe.step > START and probe.kl is not None)

    @property
    def taken(self) -> int | None:
        """Optimiser steps that are known to have been taken, ``None`` without any record of one."""
        # A log with a line every few steps ends before the run does; and an interrupted run says what it began with.
        known = [records[-1].step + 1 for records in (self.steps, self.guard_steps, self.probes) if records]
        known += [self.recorded] if self.recorded else []
        return max(known) if known else None
