"""Acting on the factors of an adapter so that its part in the alignment subspace is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from loralign.errors import ConfigError, StateError
from loralign.guard import (
    AlignmentSubspace,
    GuardPenalty,
    LayerSubspace,
    PenaltyResult,
    PenaltyWeights,
    SubspaceInfo,
    TaskCurvature,
    project,
    proximal_step,
    total_share,
)
from loralign.lora import LoraFactors, canonical_name
from loralign.training.guard_config import GuardConfig

# Of an explicit decoupled step, relative to the norm of the factor that takes it.
_LONGEST_STEP = 0.1


class SubspaceHold:
    """One subspace on one adapter: the penalty or the projection, and how much of the update lies inside.

    Args:
        layers: the adapter's layers.
        subspace: of the model that the adapter starts from.
        config: how to hold it.
        curvature: of the task, per layer, where the configuration asks for one.
        seed: of sampled rows.

    Raises:
        AdapterError: the subspace covers none of the layers, or only some.
    """

    def __init__(
        self,
        layers: Sequence[LoraFactors],
        subspace: AlignmentSubspace,
        config: GuardConfig,
        curvature: Sequence[TaskCurvature | None] | None = None,
        seed: int = 0,
    ) -> None:
        self.layers = list(layers)
        self.config = config
        self.curvature = curvature
        self.seed = seed
        self.last: PenaltyResult | None = None
        # What re-estimation finds is of the adapter's layers too, so weights keep their meaning.
        self.replace(subspace.restricted([canonical_name(layer.name) for layer in self.layers]))

    def replace(self, subspace: AlignmentSubspace) -> None:
        """Hold another subspace from now on."""
        self.subspace = subspace
        # What is kept for checkpoints and measured stays as it was estimated.
        held = subspace.levelled() if self.config.eigenvalue_scale == "layer" else subspace
        self._install(held.match(self.layers, partial=self.config.guard_partial), held.scale)

    def seed_gradients(self, weights: PenaltyWeights, scale: float) -> None:
        """Put the penalty's gradient into the parameters' gradients, where it acts in the loss."""
        if self.config.guard_mode == "penalty" and self.config.guard_placement == "loss":
            self.last = self.penalty.backward(weights, scale=scale)

    def act(
        self, weights: PenaltyWeights, strength: float, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, Any] | None:
        """What follows the optimiser's step; returns what there is to log."""
        if self.config.guard_mode == "measure":
            return None
        if self.config.guard_mode == "project":
            project(self.layers, self.subspaces, strength, self.config.guard_projection)
            return {"strength": strength}
        if self.config.guard_placement == "decoupled":
            self.last = self._decoupled_step(weights, optimizer)
        record: dict[str, Any] = {"weights": asdict(weights)}
        if self.last is not None:
            names = ("alignment", "stability", "overlap", "geodesic", "total")
            values = {name: getattr(self.last, name) for name in names}
            # A term that was not computed is not a number.
            record["penalty"] = {name: value for name, value in values.items() if value == value}
        return record

    def share(self) -> float:
        """Share of the whole update's squared norm that lies in the subspace."""
        return total_share(self.layers, self.subspaces)

    def coupling(self) -> float:
        """Mean over layers of ``|cos∠(ΔW_A, ΔW_T)|`` under the projection of the configuration."""
        cosines = self.penalty.evaluate(PenaltyWeights(0.0, 0.0, 0.0), gradients=False).layer_cosine
        return float(cosines.abs().mean())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs but tensors: ready for JSON. Re-estimation may have changed the subspace."""
        plain = ("trace", "columns", "half_agreement", "weights")
        return {
            "penalty": self.penalty.state_dict(),
            "info": asdict(self.subspace.info),
            "layers": {
                name: {key: getattr(layer, key) for key in plain} for name, layer in self.subspace.layers.items()
            },
        }

    def tensor_state(self) -> dict[str, Tensor]:
        """Directions and eigenvalues of the subspace in force."""
        tensors = {}
        for name, layer in self.subspace.layers.items():
            tensors[f"{name}.basis"], tensors[f"{name}.eigenvalues"] = layer.basis, layer.eigenvalues
        return tensors

    def load_state_dict(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            StateError: it covers other layers.
        """
        if list(state["layers"]) != list(self.subspace.layers):
            raise StateError("the saved guard covers other layers", fix="resume with the subspace of the saved run")
        layers = {
            name: LayerSubspace(tensors[f"{name}.basis"], tensors[f"{name}.eigenvalues"], **plain)
            for name, plain in state["layers"].items()
        }
        self.replace(AlignmentSubspace(layers, SubspaceInfo(**state["info"])))
        self.penalty.load_state_dict(state["penalty"])

    def _install(self, subspaces: list[LayerSubspace | None], scale: float) -> None:
        self.scale = scale
        self.penalty = GuardPenalty(
            self.layers,
            subspaces,
            scale,
            self.config.penalty_options(),
            curvature=self.curvature,
            seed=self.seed,
        )
        # Where the factors are, or every step copies all of them there; self.subspace stays for checkpoints.
        self.subspaces = self.penalty.placed(subspaces)

    def _decoupled_step(self, weights: PenaltyWeights, optimizer: torch.optim.Optimizer | None) -> PenaltyResult:
        """One step down the penalty with the optimiser's own learning rates, past its moments.

        The alignment term takes an implicit step, which no weight makes unstable, and so does the stability term where
        its curvature is the identity; the others take an explicit one, of a tenth of a factor's norm at most.
        """
        if optimizer is None:
            raise ConfigError("a decoupled penalty needs the optimiser's learning rate", place="guard_placement")
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        if not all(id(factor) in rates for layer in self.layers for factor in (layer.A, layer.B)):
            raise ConfigError(
                "the optimiser holds other tensors than the model's, as sharded ones do",
                place="guard_placement",
                fix="use loss",
            )
        implicit = self.config.task_curvature == "identity"
        rest = PenaltyWeights(0.0, 0.0 if implicit else weights.stability, weights.collision)
        result = self.penalty.evaluate(rest)
        with torch.no_grad():
            for layer, gradients in zip(self.layers, result.gradients or (), strict=True):
                for factor, gradient in zip((layer.A, layer.B), gradients, strict=True):
                    step = rates[id(factor)] * gradient
                    # Beyond some distance the gradient says nothing, and a budget may raise its weight without end.
                    longest = _LONGEST_STEP * factor.norm()
                    step *= (longest / step.norm().clamp_min(torch.finfo(step.dtype).tiny)).clamp(max=1)
                    factor.sub_(step.to(factor.dtype))
        own = [rates[id(layer.B)] for layer in self.layers]
        proximal_step(
            self.layers,
            self.subspaces,
            self.scale,
            [rate * weights.alignment for rate in own],
            self.config.guard_projection,
            [rate * weights.stability if implicit else 0.0 for rate in own],
        )
        return result
