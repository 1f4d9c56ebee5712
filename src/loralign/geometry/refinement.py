"""Adaptive refinement of LoRA's subspace (docs/concepts.md, adaptive subspace refinement)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from loralign.capture import GradientCapture, GradientStatistics
from loralign.capture.sketch import sketch_seed
from loralign.errors import ConfigError
from loralign.geometry.moments import move_moments, reset_moments
from loralign.geometry.refactor import refactor
from loralign.geometry.window import UpdateWindow
from loralign.lora import LoraFactors, factored_svd, lora_layers

MODES = ("condition", "accumulated", "gradient", "balanced")
SCALES = ("balanced", "rows")
MOMENTS = ("transform", "reset")


@dataclass(frozen=True)
class LayerRefinement:
    """What refinement did to one layer.

    Attributes:
        name: the layer.
        spectrum: singular values of ``s·B A`` before, descending.
        replaced: rows of ``A`` that were given new directions.
        energy_moved: share of the energy of the candidate directions that the new rows bring into reach.
        function_change: ``‖ΔW' − ΔW‖ / ‖ΔW‖``; zero where ``ΔW`` is zero.
        rotation: mean squared sine of the angles between the old and the new ``row(A)``.
        attenuation_before: ``γ`` of every objective on this layer just before, where it was measured.
        attenuation_after: the same just after.
    """

    name: str
    spectrum: list[float]
    replaced: int
    energy_moved: float
    function_change: float
    rotation: float
    attenuation_before: dict[str, float] | None = None
    attenuation_after: dict[str, float] | None = None


@dataclass(frozen=True)
class RefinementReport:
    """What refinement did to the adapter: one :class:`LayerRefinement` per layer and the model-wide ``γ``."""

    mode: str
    layers: list[LayerRefinement]
    attenuation_before: dict[str, float] | None = None
    attenuation_after: dict[str, float] | None = None
    moments: str = field(default="none")

    @property
    def function_change(self) -> float:
        """Largest relative change of any layer's ``ΔW``."""
        return max(layer.function_change for layer in self.layers)

    @property
    def energy_moved(self) -> float:
        """Mean over layers of the candidate energy brought into reach."""
        return sum(layer.energy_moved for layer in self.layers) / len(self.layers)

    @property
    def replaced(self) -> int:
        """Rows of ``A`` replaced, over all layers."""
        return sum(layer.replaced for layer in self.layers)

    def measured(self, before: GradientStatistics, after: GradientStatistics) -> RefinementReport:
        """The report with the attenuations of two measurements, per layer and for the model."""
        layers = [
            replace(layer, attenuation_before=old, attenuation_after=new)
            for layer, old, new in zip(self.layers, _by_layer(before), _by_layer(after), strict=True)
        ]
        return replace(
            self,
            layers=layers,
            attenuation_before=_named(before.objectives, before.attenuation()),
            attenuation_after=_named(after.objectives, after.attenuation()),
        )

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain values."""
        summary = {
            "function_change": self.function_change,
            "energy_moved": self.energy_moved,
            "replaced": self.replaced,
        }
        return asdict(self) | summary


def refine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    mode: str = "condition",
    capture: GradientCapture | None = None,
    window: UpdateWindow | None = None,
    target: Tensor | None = None,
    tolerance: float = 1e-3,
    emphasis: float = 1.0,
    scale: str = "balanced",
    moments: str = "transform",
    seed: int = 0,
    measure: Callable[[], GradientStatistics] | None = None,
) -> RefinementReport:
    """Rewrite every LoRA layer's factors in place: the same function and, but for ``condition``, a better subspace.

    Modes:

    - ``condition``: the balanced refactor alone; the subspace stays.
    - ``accumulated``: unused rows of ``A`` go to the leading row directions of ``ΔW + μD``, ``D`` being the updates of
      ``window``, by a randomised SVD on the factors.
    - ``gradient``: they go to the leading right singular vectors of the objectives' sketches in ``capture``, mixed by
      ``target``: the input directions that the adapter is missing.
    - ``balanced``: as ``gradient``, with every objective's sketch divided by the norm of its gradient on the layer, so
      that no loud objective takes all rows.

    On a fresh adapter (``B = 0``) every row is unused, and the last two are gradient-informed initialisations.

    Args:
        model: a PEFT model.
        optimizer: its Adam-like optimiser, if one is running: its moments are moved with the basis.
        mode: one of the above.
        capture: sketches of current gradients, for ``gradient`` and ``balanced``; stale afterwards, so reset it.
        window: realised updates, for ``accumulated``; :meth:`UpdateWindow.mark` is called at the end.
        target: ``λ (K,)``; one each by default.
        tolerance: largest share of a layer's ``‖ΔW‖²`` that may be dropped to free rows.
        emphasis: ``μ``.
        scale: see :func:`~loralign.geometry.refactor.refactor`.
        moments: ``"transform"`` or ``"reset"``.
        seed: of the randomised SVD.
        measure: a function that runs a backward pass under a capture of its own and returns its statistics; called
            just before and just after, it fills in the attenuations.

    Raises:
        ConfigError: an unknown option, or a mode without the capture or window it needs.
    """
    for value, known, what in ((mode, MODES, "mode"), (scale, SCALES, "scale"), (moments, MOMENTS, "moments")):
        if value not in known:
            raise ConfigError(f"{what} {value!r} is unknown", fix=f"use one of {', '.join(known)}")
    layers = lora_layers(model)
    candidates = _candidate_rows(mode, layers, capture, window, target, emphasis, seed)
    before = None if measure is None else measure()
    reports = [
        _refine_layer(layer, rows, optimizer, tolerance, scale, moments)
        for layer, rows in zip(layers, candidates, strict=True)
    ]
    if window is not None:
        window.mark()
    after = None if measure is None else measure()
    report = RefinementReport(mode=mode, layers=reports, moments=moments if optimizer is not None else "none")
    return report if before is None or after is None else report.measured(before, after)


@torch.no_grad()
def _refine_layer(
    layer: LoraFactors,
    candidates: Tensor | None,
    optimizer: torch.optim.Optimizer | None,
    tolerance: float,
    scale: str,
    moments: str,
) -> LayerRefinement:
    change = refactor(layer.A, layer.B, candidates, tolerance=tolerance, scale=scale)
    if optimizer is not None and (moments == "reset" or not move_moments(optimizer, layer, change)):
        reset_moments(optimizer, layer)
    layer.A.copy_(change.A)
    layer.B.copy_(change.B)
    return LayerRefinement(
        name=layer.name,
        spectrum=(layer.scaling * change.spectrum).tolist(),
        replaced=layer.rank - change.kept,
        energy_moved=change.energy_moved,
        function_change=change.dropped**0.5,
        rotation=change.rotation,
    )


def _candidate_rows(
    mode: str,
    layers: list[LoraFactors],
    capture: GradientCapture | None,
    window: UpdateWindow | None,
    target: Tensor | None,
    emphasis: float,
    seed: int,
) -> list[Tensor | None]:
    """Weighted row directions ``(c, n)`` per layer, or ``None`` where the subspace is to stay."""
    if mode == "condition":
        return [None] * len(layers)
    if mode == "accumulated":
        if window is None:
            raise ConfigError(
                "mode 'accumulated' needs the updates of a window", fix="pass window=UpdateWindow(layers)"
            )
        return [_accumulated_rows(layer, index, window, emphasis, seed) for index, layer in enumerate(layers)]
    if capture is None:
        raise ConfigError(f"mode {mode!r} needs measured gradients", fix="pass capture= after a measured backward pass")
    statistics = capture.statistics("mean")
    weights = torch.ones(len(capture.objectives), dtype=torch.float64) if target is None else target.double()
    factors = (weights / capture.shares).expand(len(layers), -1)
    if mode == "balanced":
        norms = statistics.layer_full_norms
        factors = factors / torch.where(norms > 0, norms, torch.full_like(norms, float("inf")))
    factors = torch.where(factors.isfinite(), factors, torch.zeros_like(factors))
    sketches = capture.sketches()
    rows: list[Tensor | None] = []
    for sketch, factor in zip(sketches, factors.to(sketches[0].device), strict=True):
        scaled = sketch.double() * factor[:, None, None]
        # The plain gradient mode follows the mixture itself, the balanced one every objective by itself.
        rows.append(scaled.sum(dim=0) if mode == "gradient" else scaled.flatten(0, 1))
    return rows


def _accumulated_rows(layer: LoraFactors, index: int, window: UpdateWindow, emphasis: float, seed: int) -> Tensor:
    update_left, update_right = window.updates(index)
    left = torch.cat([layer.B.detach(), emphasis * update_left], dim=1).double()
    right = torch.cat([layer.A.detach(), update_right], dim=0).double()
    generator = torch.Generator(device=left.device).manual_seed(sketch_seed(seed, 0, index))
    leading = factored_svd(left, right, rank=2 * layer.rank, generator=generator)
    return leading.S[:, None] * leading.V.mT


def _by_layer(statistics: GradientStatistics) -> list[dict[str, float]]:
    return [_named(statistics.objectives, row) for row in statistics.attenuation(per="layer")]


def _named(objectives: tuple[str, ...], values: Tensor) -> dict[str, float]:
    return dict(zip(objectives, values.tolist(), strict=True))
