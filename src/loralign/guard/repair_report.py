"""What a repair did: one record per layer, and the sums over the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from loralign.guard.repair_search import Trial
from loralign.lora import LoraFactors, factored_inner


@dataclass(frozen=True)
class LayerRepair:
    """What a repair did to one layer.

    Attributes:
        name: the layer, by its canonical name.
        strength: ``ρ`` in ``[0, 1]``; zero where the method left the layer as it was.
        energy_before: ``‖ΔW‖²`` before, with ``ΔW = s·B A``.
        energy_after: the same afterwards.
        change: ``‖ΔW' − ΔW‖ / ‖ΔW‖``; zero where ``ΔW`` is zero.
        share_before: share of ``‖ΔW‖²`` in the layer's alignment subspace before; ``None`` where no subspace covers the
            layer.
        share_after: the same afterwards.
        cosine: of ``ΔW`` and its projection, the similarity by which Safe LoRA chooses its layers; ``None`` under the
            other methods.
    """

    name: str
    strength: float
    energy_before: float
    energy_after: float
    change: float
    share_before: float | None = None
    share_after: float | None = None
    cosine: float | None = None

    @property
    def removed(self) -> float:
        """Share of ``‖ΔW‖²`` that is gone; negative where a method added some, zero where ``ΔW`` is zero."""
        return _removed(self.energy_before, self.energy_after)

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain values."""
        return asdict(self) | {"removed": self.removed}


@dataclass(frozen=True)
class RepairReport:
    """What a repair did to an adapter.

    Attributes:
        method: by which it was done.
        projection: ``"hard"`` or ``"soft"``, for the methods that have a subspace.
        per_layer: whether the strength of every layer followed from its Fisher energy.
        strength: the one strength that was asked for or found: ``ρ``, or ``κ`` where it is per layer; ``None`` where a
            strength was given for every layer by name.
        drift_budget: what the drift was to stay within; ``None`` without a budget.
        met: whether it does; ``None`` without a budget.
        drift_before: measured drift of the adapter as it came; ``None`` where nothing measures it.
        drift_after: measured drift of the repaired adapter.
        measurements: how often the drift was measured.
        trials: strengths tried for the budget, with the drift of each, in their order.
        layers: one record per LoRA layer, in the model's order.
        seed: of the random control.
        by_rank: whether strengths are shares of directions that were taken out whole, the leading ones.
    """

    method: str
    projection: str
    per_layer: bool
    strength: float | None
    drift_budget: float | None
    met: bool | None
    drift_before: float | None
    drift_after: float | None
    measurements: int
    layers: list[LayerRepair]
    trials: list[Trial] = field(default_factory=list)
    seed: int = 0
    by_rank: bool = False

    @property
    def removed(self) -> float:
        """Share of the adapter's ``Σ‖ΔW‖²`` that is gone."""
        return _removed(
            sum(layer.energy_before for layer in self.layers), sum(layer.energy_after for layer in self.layers)
        )

    @property
    def share_before(self) -> float | None:
        """Share of ``Σ‖ΔW‖²`` in the alignment subspace before, over the layers that it covers."""
        return _share([(layer.energy_before, layer.share_before) for layer in self.layers])

    @property
    def share_after(self) -> float | None:
        """The same afterwards."""
        return _share([(layer.energy_after, layer.share_after) for layer in self.layers])

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain values, the properties included."""
        summary = {"removed": self.removed, "share_before": self.share_before, "share_after": self.share_after}
        return asdict(self) | summary | {"layers": [layer.to_json() for layer in self.layers]}


def layer_change(layer: LoraFactors, start: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    """``‖ΔW‖²`` before, ``‖ΔW'‖²`` after and ``‖ΔW' − ΔW‖/‖ΔW‖``, from the factors in float64.

    Args:
        layer: with the factors as they now are.
        start: ``A (r, n)`` and ``B (m, r)`` as they were.
    """
    A, B = start
    squared_scaling = layer.scaling**2
    before = squared_scaling * float(factored_inner(B, A, B, A))
    after = squared_scaling * float(factored_inner(layer.B, layer.A, layer.B, layer.A))
    inner = squared_scaling * float(factored_inner(layer.B, layer.A, B, A))
    change = max(before + after - 2 * inner, 0.0) / before if before > 0 else 0.0
    return before, after, change**0.5


def _removed(before: float, after: float) -> float:
    return 1 - after / before if before > 0 else 0.0


def _share(parts: Sequence[tuple[float, float | None]]) -> float | None:
    covered = [(energy, share) for energy, share in parts if share is not None]
    if not covered:
        return None
    total = sum(energy for energy, _ in covered)
    return sum(energy * share for energy, share in covered) / total if total > 0 else 0.0
