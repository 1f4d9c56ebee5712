"""All terms of the guard in one object: values, and gradients on ``A`` and ``B``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loralign.errors import AdapterError, ConfigError, StateError
from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.penalties.alignment import alignment_term
from loralign.guard.penalties.cotangents import Cotangents
from loralign.guard.penalties.geodesic import cosines, geodesic_term
from loralign.guard.penalties.options import PenaltyOptions, PenaltyWeights
from loralign.guard.penalties.overlap import RowDraw, overlap_term
from loralign.guard.penalties.result import PenaltyResult
from loralign.guard.penalties.split import LayerStack, Parts, stack_layers
from loralign.guard.penalties.stability import stability_term
from loralign.guard.task_curvature import TaskCurvature
from loralign.lora import LoraFactors

_Sink = Callable[[LayerStack, Tensor, Tensor], None]
_DEAD = (
    "the frobenius geodesic term is identically zero under the hard projection, value and gradient: the two parts of "
    "the update, P ΔW and (I − P) ΔW, are orthogonal by construction. Use geodesic='row', or projection='soft'"
)


class GuardPenalty:
    """``λ_A‖F^½ΔW_A‖² + λ_T‖H^½ΔW_T‖² + λ_NC[α E_RM + (1 − α) E_geo]`` (docs/adapting.md, Penalties).

    The first three terms are energies, summed over layers: they vanish with the update, their gradients too. ``E_geo``
    is an angle, which does not, and whose gradient grows as ``1/‖ΔW‖``; it is the mean over the layers that have a
    subspace, so that it stays in [0, 1] however many there are. The sum over layers of the method as stated outweighs
    the task where a young update meets many layers (docs/results.md).

    Every term but ``E_RM`` is computed on the factors; ``E_RM`` goes through row tiles. No ``(m, n)`` tensor outlives a
    tile and nothing is kept for autograd. Factors and base weights are read anew at every call; the subspaces are
    copied once, here.

    A layer without a subspace has ``P_A = 0``: it enters the stability term with its whole update, and no other.

    Example:
        >>> penalty = GuardPenalty(layers, subspace.match(layers), subspace.scale)     # doctest: +SKIP
        >>> penalty.backward(PenaltyWeights())             # before loss.backward()    # doctest: +SKIP

    Args:
        layers: of :func:`~loralign.lora.lora_layers`.
        subspaces: one for each layer, or ``None``; see ``AlignmentSubspace.match``.
        scale: what the subspaces' eigenvalues are divided by, ``AlignmentSubspace.scale``.
        options: forms of the terms.
        curvature: ``H`` of each layer (``None``: the identity), for the forms of the stability term that need it.
        seed: of the rows that are drawn where ``options.row_fraction`` is below 1.

    Raises:
        ConfigError: another number of subspaces or curvatures than of layers, a scale that is not positive, or no
            curvature where the options need it.
        AdapterError: a subspace or curvature of another shape than its layer's.
    """

    def __init__(
        self,
        layers: Sequence[LoraFactors],
        subspaces: Sequence[LayerSubspace | None],
        scale: float,
        options: PenaltyOptions | None = None,
        curvature: Sequence[TaskCurvature | None] | None = None,
        seed: int = 0,
    ) -> None:
        self.layers = list(layers)
        self.options = options or PenaltyOptions()
        self.seed = seed
        self.draw = 0
        if self.options.task_curvature != "identity" and curvature is None:
            raise ConfigError(
                f"task_curvature {self.options.task_curvature!r} needs the task's curvature",
                fix="pass curvature=estimate_curvature(model, task samples)",
            )
        curvature = [None] * len(self.layers) if curvature is None else list(curvature)
        _check(self.layers, subspaces, curvature, scale)
        self._dead = self.options.projection == "hard" and self.options.geodesic == "frobenius"
        if self._dead:
            warnings.warn(_DEAD, UserWarning, stacklevel=2)
        self._angles = max(1, sum(space is not None for space in subspaces))
        self._stacks = stack_layers(self.layers, subspaces, curvature, scale, self.options)

    def evaluate(self, weights: PenaltyWeights, *, gradients: bool = True) -> PenaltyResult:
        """Values of all terms and, where asked, gradients of their weighted sum; no parameter is touched.

        Args:
            weights: ``λ_A``, ``λ_T`` and ``λ_NC``.
            gradients: whether to compute them.
        """
        found: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)

        def keep(stack: LayerStack, gradient_a: Tensor, gradient_b: Tensor) -> None:
            for position, index in enumerate(stack.indices):
                found[index] = (gradient_a[position], gradient_b[position])

        result = self._run(weights, keep if gradients else None)
        if not gradients:
            return result
        return PenaltyResult(**{**vars(result), "gradients": [one for one in found if one is not None]})

    def backward(self, weights: PenaltyWeights, *, scale: float = 1.0) -> PenaltyResult:
        """Add the gradient of the weighted sum to ``A.grad`` and ``B.grad``, in the parameters' dtype.

        Called before the backward pass of the loss this puts the penalty into the loss.

        Args:
            weights: ``λ_A``, ``λ_T`` and ``λ_NC``.
            scale: factor of the gradients alone, such as that of a loss scaler.
        """

        def add(stack: LayerStack, gradient_a: Tensor, gradient_b: Tensor) -> None:
            _accumulate([layer.A for layer in stack.layers], gradient_a, scale)
            _accumulate([layer.B for layer in stack.layers], gradient_b, scale)

        return self._run(weights, add)

    def placed(self, subspaces: Sequence[LayerSubspace | None]) -> list[LayerSubspace | None]:
        """The subspaces that this was made of, on the devices of the factors.

        What has to move is not copied anew: its basis is a view of what the penalty itself holds.

        Args:
            subspaces: as they were given.
        """
        found = list(subspaces)
        for stack in self._stacks:
            for position, index in enumerate(stack.indices):
                one = subspaces[index]
                if one is not None and one.basis.device != stack.basis.device:
                    basis = stack.basis[position, :, : one.rank]
                    found[index] = replace(one, basis=basis, eigenvalues=one.eigenvalues.to(basis.device))
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same rows: a JSON-ready mapping."""
        return {"version": 1, "seed": self.seed, "draw": self.draw}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the sequence of draws of a saved state.

        Raises:
            StateError: another version, or no such state.
        """
        if state.get("version") != 1 or not all(isinstance(state.get(key), int) for key in ("seed", "draw")):
            raise StateError(f"{state!r} is not the state of a penalty", place="guard penalty", fix="start anew")
        self.seed, self.draw = state["seed"], state["draw"]

    @torch.no_grad()
    def _run(self, weights: PenaltyWeights, sink: _Sink | None) -> PenaltyResult:
        found = []
        draw = RowDraw(self.options.row_fraction, self.seed, self.draw)
        for stack in self._stacks:
            stack.follow()
            parts = stack.parts()
            cotangents = None if sink is None else Cotangents(parts)
            terms = self._terms(stack, parts, weights, draw, cotangents)
            found.append(torch.cat([terms, stack.energies(parts), cosines(parts)[:, None]], dim=1))
            if sink is not None and cotangents is not None:
                sink(stack, *cotangents.pull_back(stack, parts))
        self.draw += int(draw.fraction < 1 and self._overlap_weight(weights) > 0)
        table = torch.zeros(len(self.layers), 7, dtype=torch.float64)
        # Only now, since a GPU's work is waited for at the first copy.
        for stack, rows in zip(self._stacks, found, strict=True):
            table[stack.indices] = rows.cpu()
        values, energies, angles = table[:, :4], table[:, 4:6], table[:, 6]
        return self._result(weights, *(one.contiguous() for one in (values, energies, angles)))

    def _terms(
        self, stack: LayerStack, parts: Parts, weights: PenaltyWeights, draw: RowDraw, cotangents: Cotangents | None
    ) -> Tensor:
        """Alignment, stability, overlap and geodesic of a stack, ``(L, 4)`` float64."""
        options = self.options
        zero = torch.zeros(len(stack.layers), dtype=torch.float64, device=parts.A.device)
        overlap = geodesic = zero
        through_overlap = self._overlap_weight(weights)
        if through_overlap > 0:
            overlap = overlap_term(stack, parts, options, draw, through_overlap, cotangents)
        if not self._dead:
            through_angle = weights.collision * (1 - options.alpha) / self._angles
            geodesic = geodesic_term(parts, options.geodesic, through_angle, cotangents) / self._angles
        alignment = alignment_term(stack, parts, weights.alignment, cotangents)
        stability = stability_term(stack, parts, weights.stability, cotangents)
        return torch.stack([alignment, stability, overlap, geodesic], dim=1)

    def _overlap_weight(self, weights: PenaltyWeights) -> float:
        return weights.collision * self.options.alpha

    def _result(self, weights: PenaltyWeights, values: Tensor, energies: Tensor, angles: Tensor) -> PenaltyResult:
        alignment, stability, overlap, geodesic = values.sum(dim=0).tolist()
        alpha = self.options.alpha
        collision = alpha * overlap + (1 - alpha) * geodesic
        total = weights.alignment * alignment + weights.stability * stability + weights.collision * collision
        if self._overlap_weight(weights) == 0:
            overlap = math.nan
        return PenaltyResult(alignment, stability, overlap, geodesic, total, None, energies, angles)


def _accumulate(parameters: Sequence[Tensor], gradients: Tensor, scale: float) -> None:
    """Add ``scale`` times a row of ``gradients (L, …)`` to each parameter's; where there is none, that becomes it."""
    # All layers' at once, and not added to zeros: on a GPU every operation costs, however small.
    scaled = gradients * scale
    for parameter, gradient, own in zip(parameters, gradients, scaled, strict=True):
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = own.to(parameter)
        else:
            parameter.grad.add_(gradient.to(parameter.device), alpha=scale)


def _check(
    layers: Sequence[LoraFactors],
    subspaces: Sequence[LayerSubspace | None],
    curvature: Sequence[TaskCurvature | None],
    scale: float,
) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"scale {scale!r} of the eigenvalues must be positive")
    for what, given in (("subspaces", subspaces), ("curvatures", curvature)):
        if len(given) != len(layers):
            raise ConfigError(f"{len(given)} {what} do not fit {len(layers)} layers", fix="give one for each layer")
    for layer, space, metric in zip(layers, subspaces, curvature, strict=True):
        sizes = {} if space is None else {"subspace": (space.basis.shape[0], space.columns)}
        if metric is not None:
            sizes["task curvature"] = (
                metric.output.size,
                layer.shape[1] if metric.input is None else metric.input.size,
            )
        for what, shape in sizes.items():
            if shape != layer.shape:
                raise AdapterError(
                    f"the {what} is of shape {shape} and the layer of {layer.shape}",
                    place=layer.name,
                    fix="use the model it was estimated on",
                )
