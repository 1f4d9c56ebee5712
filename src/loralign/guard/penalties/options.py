"""What of the update is penalised, how strongly, and in which of the definition's forms."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from loralign.errors import ConfigError
from loralign.guard.layer_subspace import Projection

Geodesic = Literal["row", "frobenius"]
CurvatureForm = Literal["identity", "diagonal", "kronecker"]


@dataclass(frozen=True)
class PenaltyWeights:
    """The multipliers of the three terms of the loss (docs/adapting.md).

    The defaults are what held most at the same task loss on a model of 135M parameters (docs/results.md). The
    literature's 0.25, 0.5 and 0.1 there hold the task part, whose curvature is 1 in every direction, far more than the
    alignment-critical one, whose normalised eigenvalues are at most about 1.

    Attributes:
        alignment: ``λ_A``, of ``‖F^½ΔW_A‖²``.
        stability: ``λ_T``, of ``‖H^½ΔW_T‖²``.
        collision: ``λ_NC``, of ``α E_RM + (1 − α) E_geo``.

    Raises:
        ConfigError: a weight that is negative or not finite.
    """

    alignment: float = 10.0
    stability: float = 0.02
    collision: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"weight {value!r} must be a number of at least 0", place=field.name)


@dataclass(frozen=True)
class PenaltyOptions:
    """Forms of the terms (docs/adapting.md, Parts and Penalties).

    Attributes:
        projection: ``"hard"`` takes all retained directions whole (the paper); ``"soft"`` weights them by confidence.
        geodesic: ``"row"``, the input directions that both parts read; ``"frobenius"``, the paper's squared cosine,
            which is identically zero under the hard projection.
        alpha: ``α`` in [0, 1], the share of the Riemannian overlap in the collision term. At 0 the overlap, by far the
            dearest term, is not computed.
        beta: ``β ≥ 0``, how much more an overlap counts where the weight is large.
        tau: ``τ ≥ 0``, the magnitude at which a weight counts as large.
        task_curvature: ``H``: ``"identity"``, ``"diagonal"`` (output side) or ``"kronecker"``.
        row_fraction: share in (0, 1] of every layer's rows that the overlap is taken over, drawn anew each time and
            scaled up, so that the expectation stays.
        tile_rows: rows of a layer that the overlap holds at once; chosen by the size of the cache where ``None``.

    Raises:
        ConfigError: an unknown form, or a number outside of its range.
    """

    projection: Projection = "hard"
    geodesic: Geodesic = "row"
    alpha: float = 0.5
    beta: float = 4.0
    tau: float = 0.01
    task_curvature: CurvatureForm = "identity"
    row_fraction: float = 1.0
    tile_rows: int | None = None

    def __post_init__(self) -> None:
        forms = (("projection", Projection), ("geodesic", Geodesic), ("task_curvature", CurvatureForm))
        for name, form in forms:
            value, known = getattr(self, name), get_args(form)
            if value not in known:
                raise ConfigError(f"{name} {value!r} is unknown", fix=f"use one of {', '.join(known)}")
        for name, lowest, highest in (("alpha", 0, 1), ("beta", 0, math.inf), ("tau", 0, math.inf)):
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ConfigError(f"{name} {value!r} must be a number of {lowest} to {highest}")
        if not 0 < self.row_fraction <= 1:
            raise ConfigError(f"row_fraction {self.row_fraction!r} must be above 0 and at most 1")
        if self.tile_rows is not None and self.tile_rows < 1:
            raise ConfigError(f"tile_rows {self.tile_rows!r} must be at least 1")
