"""Trying strengths of a repair on an adapter, and putting the adapter back as it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from loralign.errors import ConfigError
from loralign.guard.repair_methods import Repairer
from loralign.guard.repair_report import LayerRepair, layer_change
from loralign.guard.repair_search import finite_drift
from loralign.lora import LoraFactors, canonical_name


class RepairWork:
    """The adapter's factors as they came, and the repair that is in force.

    Args:
        layers: all layers of the adapter; what they hold now is what :meth:`restore` puts back.
        repairer: the method.
        measure: gives the drift of the model as it is at the time; without it nothing is measured.
    """

    def __init__(self, layers: Sequence[LoraFactors], repairer: Repairer, measure: Callable[[], float] | None) -> None:
        self._layers = list(layers)
        self._repairer = repairer
        self._measure = measure
        self._start = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]
        self._applied = [0.0] * len(layers)
        self._at: float | list[float] = 0.0
        self.measurements = 0

    @torch.no_grad()
    def restore(self) -> None:
        """Put the factors back as they came, bit by bit."""
        for layer, (A, B) in zip(self._layers, self._start, strict=True):
            layer.A.copy_(A)
            layer.B.copy_(B)
        self._applied = [0.0] * len(self._layers)
        self._at = 0.0

    def leave_at(self, strength: float | list[float]) -> None:
        """Repair the adapter as it came with this strength, or with these by layer."""
        if strength == self._at:
            return
        self.restore()
        strengths = strength if isinstance(strength, list) else self._repairer.strengths(strength)
        if any(strengths):
            self._applied = self._repairer.apply(strengths)
        self._at = strength

    def drift_at(self, strength: float | list[float]) -> float:
        """The drift that this strength leaves."""
        if self._measure is None:
            raise ConfigError("there is nothing that measures the drift", fix="pass measure=")
        self.leave_at(strength)
        self.measurements += 1
        return finite_drift(self._measure())

    def measured(self, strength: float | list[float]) -> tuple[float | None, float | None]:
        """Repair with this strength; the drift before and after, where something measures it."""
        if self._measure is None:
            self.leave_at(strength)
            return None, None
        return self.drift_at(0.0), self.drift_at(strength)

    def records(self, before: Sequence[float | None], after: Sequence[float | None]) -> list[LayerRepair]:
        """One record per layer, with its shares before and after."""
        cosines = self._repairer.cosines()
        found = []
        for index, (layer, start) in enumerate(zip(self._layers, self._start, strict=True)):
            old, new, change = layer_change(layer, start)
            found.append(
                LayerRepair(
                    name=canonical_name(layer.name),
                    strength=self._applied[index],
                    energy_before=old,
                    energy_after=new,
                    change=change,
                    share_before=before[index],
                    share_after=after[index],
                    cosine=cosines[index],
                )
            )
        return found
