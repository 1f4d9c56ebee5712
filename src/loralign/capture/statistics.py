"""The three Gramians of a set of objectives and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loralign.errors import ConfigError, StateError

SPACES = ("full", "accessible", "euclidean")
_STATE_VERSION = 1
_RESOLUTION = 1e-5


@dataclass(frozen=True)
class GradientStatistics:
    """Gram matrices of the objectives' gradients, per layer and for the model (docs/concepts.md, the three Gramians).

    Attributes:
        objectives: the ``K`` names.
        layer_names: the ``L`` LoRA layers.
        layer_full: ``F_ij = ⟨G_i, G_j⟩`` per layer, ``(L, K, K)`` float64.
        layer_accessible: ``A_ij = ⟨P G_i, P G_j⟩`` with ``P`` the projector on LoRA's tangent space, ``(L, K, K)``.
        layer_euclidean: ``E_ij`` over the parameters ``A`` and ``B``, what the optimiser sees, ``(L, K, K)``.
        samples: ``(K,)`` samples seen.
        tokens: ``(K,)`` token positions seen, padding included.
    """

    objectives: tuple[str, ...]
    layer_names: tuple[str, ...]
    layer_full: Tensor
    layer_accessible: Tensor
    layer_euclidean: Tensor
    samples: Tensor
    tokens: Tensor

    @property
    def full(self) -> Tensor:
        """``F``, ``(K, K)``, summed over layers."""
        return self.layer_full.sum(dim=0)

    @property
    def accessible(self) -> Tensor:
        """``A``, ``(K, K)``, summed over layers."""
        return self.layer_accessible.sum(dim=0)

    @property
    def euclidean(self) -> Tensor:
        """``E``, ``(K, K)``, summed over layers."""
        return self.layer_euclidean.sum(dim=0)

    @property
    def layer_full_norms(self) -> Tensor:
        """``‖G_i‖`` per layer, ``(L, K)``."""
        return _norms(self.layer_full)

    @property
    def layer_accessible_norms(self) -> Tensor:
        """``‖P G_i‖`` per layer, ``(L, K)``."""
        return _norms(self.layer_accessible)

    def gramian(self, space: str) -> Tensor:
        """The ``(K, K)`` Gramian of a space: ``"full"``, ``"accessible"`` or ``"euclidean"``.

        Raises:
            ConfigError: another name.
        """
        if space not in SPACES:
            raise ConfigError(f"space {space!r} is unknown", fix=f"use one of {', '.join(SPACES)}")
        matrix: Tensor = getattr(self, space)
        return matrix

    def norms(self, space: str) -> Tensor:
        """Gradient norms of the objectives in a space, ``(K,)``."""
        return _norms(self.gramian(space))

    def attenuation(self, per: str = "model") -> Tensor:
        """``γ_i = √(A_ii / F_ii)`` in ``[0, 1]``: the part of an objective's gradient that LoRA can follow.

        Args:
            per: ``"model"`` → ``(K,)``, ``"layer"`` → ``(L, K)``.

        Returns:
            float64; NaN where an objective has no gradient.
        """
        if per not in ("model", "layer"):
            raise ConfigError(f"per {per!r} is unknown", fix="use 'model' or 'layer'")
        accessible = self.accessible if per == "model" else self.layer_accessible
        full = self.full if per == "model" else self.layer_full
        # The accessible part is exact and the residual's estimate is a sum of squares, so the ratio cannot pass one
        # but by rounding.
        return (_diagonal(accessible) / _diagonal(full)).clamp(0, 1).sqrt()

    def cosine(self, space: str) -> Tensor:
        """Cosines between the objectives' gradients in a space, ``(K, K)``; NaN where one has no gradient."""
        gramian = self.gramian(space)
        norms = _norms(gramian)
        return (gramian / (norms[:, None] * norms[None, :])).clamp(-1, 1)

    def present(self) -> Tensor:
        """``(K,)`` bool: objectives with samples and, in every Gramian, a finite gradient that is not zero.

        A gradient below ``1e-5`` of the largest counts as zero: what float32 leaves of a gradient that vanishes, such
        as that of a KL divergence where policy and reference still agree, must not be weighted up.
        """
        usable = self.samples > 0
        for space in SPACES:
            norms = self.norms(space)
            finite = norms.isfinite()
            largest = torch.where(finite, norms, torch.zeros_like(norms)).max()
            usable &= finite & (norms > _RESOLUTION * largest)
        return usable

    def scaled(self, factors: Tensor) -> GradientStatistics:
        """The statistics of the gradients ``c_i G_i`` for ``factors (K,)``."""
        outer = factors.double()[:, None] * factors.double()[None, :]
        return replace(
            self,
            layer_full=self.layer_full * outer,
            layer_accessible=self.layer_accessible * outer,
            layer_euclidean=self.layer_euclidean * outer,
        )

    def state_dict(self) -> dict[str, Any]:
        """A versioned mapping of plain lists and strings, ready for JSON."""
        return {
            "version": _STATE_VERSION,
            "objectives": list(self.objectives),
            "layer_names": list(self.layer_names),
            **{name: getattr(self, name).tolist() for name in _TENSORS},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> GradientStatistics:
        """Read a :meth:`state_dict`.

        Raises:
            StateError: another version, missing keys, or shapes that do not fit each other.
        """
        if state.get("version") != _STATE_VERSION:
            raise StateError(f"statistics of version {state.get('version')!r} are not understood")
        missing = [name for name in ("objectives", "layer_names", *_TENSORS) if name not in state]
        if missing:
            raise StateError(f"statistics lack {', '.join(missing)}")
        objectives, layer_names = tuple(state["objectives"]), tuple(state["layer_names"])
        tensors = {name: torch.tensor(state[name], dtype=torch.float64) for name in _TENSORS}
        count = len(objectives)
        for name, tensor in tensors.items():
            expected = (len(layer_names), count, count) if name.startswith("layer_") else (count,)
            if tuple(tensor.shape) != expected:
                raise StateError(f"statistics hold {name} of shape {tuple(tensor.shape)}, expected {expected}")
        return cls(objectives=objectives, layer_names=layer_names, **tensors)


_TENSORS = ("layer_full", "layer_accessible", "layer_euclidean", "samples", "tokens")


def _diagonal(gramian: Tensor) -> Tensor:
    return gramian.diagonal(dim1=-2, dim2=-1)


def _norms(gramian: Tensor) -> Tensor:
    return _diagonal(gramian).clamp_min(0).sqrt()
