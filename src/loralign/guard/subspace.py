"""Alignment-critical output directions of every layer, found from a Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from loralign.capture.sketch import sketch_seed
from loralign.errors import AdapterError, ConfigError, StateError
from loralign.guard.identity import base_modules, layer_identity, model_name, model_revision
from loralign.guard.layer_subspace import (
    LayerSubspace,
    Projection,
    SubspaceInfo,
    layer_similarity,
    soft_coefficients,
)
from loralign.guard.storage import load_subspace, save_subspace
from loralign.lora import LoraFactors, canonical_name

__all__ = ["AlignmentSubspace", "LayerSubspace", "Projection", "SubspaceInfo", "soft_coefficients"]


class AlignmentSubspace:
    """The alignment-critical subspaces of a model's layers, by canonical name, with where they come from.

    Args:
        layers: at least one, in the model's order.
        info: where they come from.

    Raises:
        ConfigError: there is no layer.
    """

    def __init__(self, layers: Mapping[str, LayerSubspace], info: SubspaceInfo) -> None:
        if not layers:
            raise ConfigError("a subspace needs at least one layer")
        self.layers = dict(layers)
        self.info = info

    @property
    def scale(self) -> float:
        """Mean over layers of the largest eigenvalue; eigenvalues divided by it mean the same on every model."""
        return math.fsum(float(layer.eigenvalues[0]) for layer in self.layers.values() if layer.rank) / len(self.layers)

    def levelled(self) -> AlignmentSubspace:
        """The same directions with every layer's eigenvalues divided by its own largest, so that layers count alike."""
        layers = {}
        for name, layer in self.layers.items():
            top = float(layer.eigenvalues[0]) if layer.rank else 0.0
            layers[name] = (
                replace(layer, eigenvalues=layer.eigenvalues / top, trace=layer.trace / top) if top > 0 else layer
            )
        return AlignmentSubspace(layers, self.info)

    def energy_curve(self, layer: str) -> Tensor:
        """Energy captured by the first 1, 2, … ``q`` directions of a layer, ``(q,)`` float64.

        Raises:
            ConfigError: no such layer.
        """
        if layer not in self.layers:
            raise ConfigError(f"the subspace has no layer {layer!r}", fix=f"one of them is {next(iter(self.layers))!r}")
        found = self.layers[layer]
        curve: Tensor = found.eigenvalues.double().cumsum(0) / found.trace if found.trace > 0 else found.eigenvalues * 0
        return curve.double()

    def match(self, layers: Sequence[LoraFactors], *, partial: bool = False) -> list[LayerSubspace | None]:
        """The subspace of each of an adapter's layers, in their order; ``None`` for a layer that has none.

        Args:
            layers: of :func:`~loralign.lora.lora_layers`.
            partial: whether some may have none.

        Raises:
            AdapterError: no layer has one, or only some and ``partial`` is false.
            StateError: a layer has another shape.
        """
        found = [self.layers.get(canonical_name(layer.name)) for layer in layers]
        missing = [canonical_name(layer.name) for layer, one in zip(layers, found, strict=True) if one is None]
        if len(missing) == len(layers):
            raise AdapterError(
                f"the subspace covers none of the adapter's {len(layers)} layers, such as {_some(missing)}",
                place="subspace",
                fix=f"estimate it for these layers; it covers {_some(list(self.layers))}",
            )
        if missing and not partial:
            raise AdapterError(
                f"the subspace covers {len(layers) - len(missing)} of the adapter's {len(layers)} layers and lacks "
                f"{_some(missing)}",
                place="subspace",
                fix="estimate it with the adapter's target_modules, or allow a partial cover",
            )
        for layer, one in zip(layers, found, strict=True):
            if one is not None and layer.shape != (one.rows, one.columns):
                raise _other_shape(canonical_name(layer.name), one, layer.shape)
        return found

    def check(self, model: nn.Module) -> None:
        """Check that the subspace was estimated on this base model; its adapter, if any, does not matter.

        Equal weights make it the same base, whatever its name, dtype and place. Where weights cannot be compared
        (quantised bases), names decide.

        Raises:
            StateError: a layer is missing or has another shape or other weights; or name or revision differ.
        """
        modules = base_modules(model, self.layers)
        missing = [name for name in self.layers if name not in modules]
        if missing:
            raise StateError(
                f"the model has no layer {_some(missing)}", place="subspace", fix="use the model it was estimated on"
            )
        compared = [_same_weights(name, layer, modules[name]) for name, layer in self.layers.items()]
        theirs, ours = model_revision(model), self.info.revision
        if theirs and ours and theirs != ours:
            raise StateError(
                f"the subspace is of revision {ours} and the model of {theirs}",
                place="subspace",
                fix="load that revision, or estimate the subspace again",
            )
        theirs, ours = model_name(model), self.info.model
        if not any(compared) and theirs and ours and theirs != ours:
            raise StateError(
                f"the subspace is of {ours} and the model is {theirs}",
                place="subspace",
                fix="load that model, or estimate the subspace again",
            )

    def similarity(self, other: AlignmentSubspace) -> dict[str, float]:
        """Mean squared cosine of the principal angles between both subspaces, per layer that both have, 0 to 1.

        The mean is over the smaller rank: 1 where one subspace contains the other. Random subspaces of ranks
        ``q ≤ p`` of ``R^m`` have ``p/m`` on average.

        Raises:
            StateError: no layer in common, or of another size.
        """
        shared = [name for name in self.layers if name in other.layers]
        if not shared:
            raise StateError("the two subspaces have no layer in common", place="subspace", fix="use the same model")
        return {name: layer_similarity(name, self.layers[name], other.layers[name]) for name in shared}

    def truncated(self, rank: int) -> AlignmentSubspace:
        """The same with at most ``rank`` directions per layer.

        Raises:
            ConfigError: ``rank`` is below 1.
        """
        if rank < 1:
            raise ConfigError(f"rank {rank} must be at least 1")
        layers = {name: layer.truncated(rank) for name, layer in self.layers.items()}
        return AlignmentSubspace(layers, replace(self.info, energy=None, half_agreement=None))

    def restricted(self, names: Collection[str]) -> AlignmentSubspace:
        """The same, of those layers only that are named; of all of them where none is.

        Args:
            names: canonical names.
        """
        layers = {name: layer for name, layer in self.layers.items() if name in names}
        return self if not layers or len(layers) == len(self.layers) else AlignmentSubspace(layers, self.info)

    def with_ranks(self, ranks: Mapping[str, int]) -> AlignmentSubspace:
        """The same with at most the given number of directions in each of the named layers; the others are left out.

        Args:
            ranks: by canonical name.

        Raises:
            ConfigError: no layer is named.
        """
        layers = {name: layer.truncated(ranks[name]) for name, layer in self.layers.items() if name in ranks}
        return AlignmentSubspace(layers, self.info)

    def random_like(self, seed: int) -> AlignmentSubspace:
        """A control: uniformly distributed (Haar) directions of the same ranks, with the same eigenvalues.

        Args:
            seed: of the directions.
        """
        layers = {}
        for index, (name, layer) in enumerate(self.layers.items()):
            generator = torch.Generator().manual_seed(sketch_seed(seed, 0, index))
            gaussian = torch.randn(layer.basis.shape, generator=generator, dtype=torch.float64)
            frame, triangle = torch.linalg.qr(gaussian)
            # With the signs of R's diagonal the Q factor is Haar distributed, not only its range.
            basis = (frame * triangle.diagonal().sign()).float()
            layers[name] = replace(layer, basis=basis, half_agreement=None)
        return AlignmentSubspace(layers, replace(self.info, kind="random", seed=seed, half_agreement=None))

    def save(self, directory: str | Path) -> None:
        """Write ``subspace.safetensors`` and ``subspace.json`` into a new directory, both or nothing.

        Raises:
            OutputError: the directory exists or cannot be written.
        """
        save_subspace(self.layers, self.info, Path(directory))

    @classmethod
    def load(cls, directory: str | Path, model: nn.Module | None = None) -> AlignmentSubspace:
        """Read what :meth:`save` wrote, and check that it belongs to ``model`` where one is given.

        Raises:
            StateError: it is missing, damaged, altered, of an unknown version, or of another model.
        """
        subspace = cls(*load_subspace(Path(directory)))
        if model is not None:
            subspace.check(model)
        return subspace


def _same_weights(name: str, layer: LayerSubspace, base: nn.Module) -> bool:
    """Whether the weights could be compared; that they differ is an error."""
    own = layer_identity(base)
    if (own.rows, own.columns) != (layer.rows, layer.columns):
        raise _other_shape(name, layer, (own.rows, own.columns))
    if own.weights is None or layer.weights is None:
        return False
    if own.weights != layer.weights:
        raise StateError(
            "the model has other weights than the one the subspace was estimated on",
            place=f"subspace: {name}",
            fix="use that model, or estimate the subspace again",
        )
    return True


def _other_shape(name: str, layer: LayerSubspace, shape: tuple[int, int]) -> StateError:
    return StateError(
        f"the layer has shape {shape} and the subspace is of one with {(layer.rows, layer.columns)}",
        place=f"subspace: {name}",
        fix="use the model it was estimated on",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
