"""Settings of the guard, in TRL's manner."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from loralign.errors import ConfigError
from loralign.guard import DriftController, PenaltyOptions, PenaltyWeights
from loralign.guard.fisher_options import OPENING
from loralign.guard.layer_subspace import Projection
from loralign.guard.penalties.options import CurvatureForm, Geodesic
from loralign.training.options import option

Mode = Literal["penalty", "project", "measure"]
Placement = Literal["loss", "decoupled"]
EigenvalueScale = Literal["model", "layer"]


@dataclass
class GuardConfig:
    """How the alignment-critical part of the update is held (docs/adapting.md).

    Every field is a flag of ``loralign adapt`` and of ``loralign align``, and a key of their recipes. Invalid values
    raise :class:`~loralign.errors.ConfigError` when the configuration is made.
    """

    guard_mode: Mode = field(
        default="penalty",
        metadata={
            "help": "penalty: the weighted terms below; project: take the part in the subspace out after every step; "
            "measure: hold nothing, but log drift and the update's share in the subspace."
        },
    )
    guard_placement: Placement = field(
        default="loss",
        metadata={
            "help": "Where a penalty acts: loss, its gradient joins that of the task; decoupled, its step follows the "
            "optimiser's with the same learning rate, as decoupled weight decay does, so that Adam does not rescale it."
        },
    )
    guard_projection: Projection = field(
        default="hard",
        metadata={"help": "hard: every retained direction counts whole; soft: by its share of Fisher energy."},
    )
    eigenvalue_scale: EigenvalueScale = field(
        default="model",
        metadata={
            "help": "What the alignment term divides eigenvalues by: model, the mean over layers of the largest, so "
            "that layers keep their relative importance; layer, each layer's own largest, so that all count alike."
        },
    )
    lambda_alignment: float = option(10.0, "Weight of the curvature-weighted penalty on the alignment-critical part.")
    lambda_stability: float = option(0.02, "Weight of the penalty on the task part.")
    lambda_collision: float = option(0.1, "Weight of the collision terms, overlap and geodesic.")
    collision_alpha: float = option(0.5, "Share of the overlap in the collision terms; the rest is geodesic.")
    overlap_beta: float = option(4.0, "How much more the overlap counts where weights are large.")
    overlap_tau: float = option(0.01, "The size from which on a weight counts as large.")
    overlap_rows: float = option(1.0, "Share of the rows on which the overlap is computed; below 1 an estimate.")
    geodesic: Geodesic = field(
        default="row",
        metadata={"help": "row: shared input directions; frobenius: the paper's, zero for hard projection."},
    )
    task_curvature: CurvatureForm = field(
        default="identity",
        metadata={
            "help": "Curvature in the task part's penalty: identity, diagonal or kronecker (both from task data)."
        },
    )
    curvature_samples: int = option(64, "Task samples that the curvature is estimated from.")
    project_strength: float = option(1.0, "Share of the part in the subspace that guard_mode project takes out.")
    drift_budget: float | None = option(
        None,
        "Divergence from the start that may be lost, in nats per token of the probe's openings; sets the weights.",
    )
    control_rate: float | None = option(
        None, "Step size of the dual ascent that follows the budget; by default 0.2, and more where probes are few."
    )
    control_max: float = option(1e4, "Largest factor by which the budget may raise the weights.")
    control_entropy: float = option(0.0, "How far a rise of the probe's predictive entropy lowers the weights.")
    probe_every: int = option(5, "Measure drift on the probe set every so many optimiser steps; 0 is off.")
    probe_samples: int = option(48, "Prompts of the probe set.")
    probe_tokens: int = option(
        OPENING, "First tokens of the probe's responses that drift is measured on; 0 is all of them."
    )
    reestimate_every: float = option(
        0.25,
        "Estimate the subspace again every so many optimiser steps; below 1 a share of the run's steps, 0 is off.",
    )
    refusal_every: int = option(0, "Generate answers to the probe's unsafe prompts every so many steps; 0 is off.")
    guard_partial: bool = option(False, "Accept a subspace that covers only some of the adapter's layers.")

    def __post_init__(self) -> None:
        for name, form in (
            ("guard_mode", Mode),
            ("guard_placement", Placement),
            ("guard_projection", Projection),
            ("eigenvalue_scale", EigenvalueScale),
            ("geodesic", Geodesic),
            ("task_curvature", CurvatureForm),
        ):
            known = get_args(form)
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{getattr(self, name)!r} is unknown", place=name, fix=f"use one of {', '.join(known)}"
                )
        for name, least, most in (
            ("lambda_alignment", 0.0, math.inf),
            ("lambda_stability", 0.0, math.inf),
            ("lambda_collision", 0.0, math.inf),
            ("collision_alpha", 0.0, 1.0),
            ("overlap_beta", 0.0, math.inf),
            ("overlap_tau", 0.0, math.inf),
            ("project_strength", 0.0, 1.0),
            ("curvature_samples", 1, math.inf),
            ("probe_every", 0, math.inf),
            ("probe_samples", 1, math.inf),
            ("probe_tokens", 0, math.inf),
            ("reestimate_every", 0, math.inf),
            ("refusal_every", 0, math.inf),
        ):
            value = getattr(self, name)
            if not (least <= value <= most and math.isfinite(value)):
                bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise ConfigError(f"{value} is out of range", place=name, fix=f"use a finite number {bounds}")
        if self.reestimate_every > 1 and not float(self.reestimate_every).is_integer():
            raise ConfigError(
                f"{self.reestimate_every} is no number of steps",
                place="reestimate_every",
                fix="use a whole number, or a share of the run's steps below 1",
            )
        if not 0 < self.overlap_rows <= 1:
            raise ConfigError(f"{self.overlap_rows} must lie in (0, 1]", place="overlap_rows")
        if self.drift_budget is not None:
            if self.probe_every == 0:
                raise ConfigError("a budget needs a probe", place="probe_every", fix="set it to 5, say")
            if self.guard_mode == "measure":
                raise ConfigError("a budget holds nothing here", place="guard_mode", fix="use penalty or project")
            project = self.guard_mode == "project"
            if not (self.project_strength if project else any(self._penalties)):
                raise ConfigError(
                    "a budget only scales what is held, and that is 0",
                    place="project_strength" if project else "lambda_alignment",
                    fix="set it above 0",
                )
            self.make_controller()

    def reestimation_interval(self, total_steps: int | None) -> int:
        """Optimiser steps between two estimates of the subspace, 0 for none; a share of the run is rounded up."""
        if 0 < self.reestimate_every < 1:
            # Rounded first: 0.07 · 100 is a little more than 7 in floating point.
            return math.ceil(round(self.reestimate_every * total_steps, 9)) if total_steps else 0
        return int(self.reestimate_every)

    @property
    def _penalties(self) -> tuple[float, float, float]:
        return self.lambda_alignment, self.lambda_stability, self.lambda_collision

    def make_controller(self) -> DriftController | None:
        """The controller of the budget, or ``None`` where the weights are fixed.

        Raises:
            ConfigError: a budget that is zero, negative or not finite.
        """
        if self.drift_budget is None:
            return None
        options: dict[str, Any] = {} if self.control_rate is None else {"rate": self.control_rate}
        return DriftController(
            self.drift_budget, bounds=(0.0, self.control_max), entropy_gain=self.control_entropy, **options
        )

    def penalty_options(self) -> PenaltyOptions:
        """The form of the penalty's terms."""
        return PenaltyOptions(
            projection=self.guard_projection,
            geodesic=self.geodesic,
            alpha=self.collision_alpha,
            beta=self.overlap_beta,
            tau=self.overlap_tau,
            task_curvature=self.task_curvature,
            row_fraction=self.overlap_rows,
        )

    def penalty_weights(self, multiplier: float = 1.0) -> PenaltyWeights:
        """``λ_A``, ``λ_T``, ``λ_NC``, all of them times a budget's multiplier.

        The method as stated lets ``λ_T`` stand. But what drifts outside of the subspace only ``λ_T`` can hold, so that
        without it there are budgets that no multiplier reaches.
        """
        return PenaltyWeights(
            alignment=multiplier * self.lambda_alignment,
            stability=multiplier * self.lambda_stability,
            collision=multiplier * self.lambda_collision,
        )
