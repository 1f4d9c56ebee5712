"""The subspace of one layer, and where a set of them comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from loralign.errors import ConfigError, StateError

Projection = Literal["hard", "soft"]


@dataclass(frozen=True)
class LayerSubspace:
    """The leading eigenvectors of one layer's output-side Fisher matrix ``F = E_s[G_s G_sᵀ] (m, m)``.

    Attributes:
        basis: ``U (m, q)`` float32, orthonormal columns in the order of the eigenvalues.
        eigenvalues: ``(q,)`` float32, descending, in the squared unit of the loss per unit of weight.
        trace: ``tr F``, of all ``m`` eigenvalues.
        columns: ``n`` of the layer's ``W (m, n)``.
        half_agreement: mean squared cosine of the principal angles between the subspaces of the two halves of the
            samples, 0 to 1; ``None`` where it was not measured.
        weights: digest of the frozen weight (:func:`~loralign.guard.identity.layer_identity`), or ``None``.
    """

    basis: Tensor
    eigenvalues: Tensor
    trace: float
    columns: int
    half_agreement: float | None = None
    weights: str | None = None

    @property
    def rows(self) -> int:
        """``m``."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """``q``."""
        return self.basis.shape[1]

    @property
    def energy(self) -> float:
        """Share of ``tr F`` that the subspace captures, ``Σ_{i≤q} λ_i / tr F``."""
        return float(self.eigenvalues.double().sum()) / self.trace if self.trace > 0 else 0.0

    def truncated(self, rank: int) -> LayerSubspace:
        """The first ``rank`` directions, or all where there are no more; what halves of the samples said is dropped."""
        if rank >= self.rank:
            return self
        basis, eigenvalues = self.basis[:, :rank].clone(), self.eigenvalues[:rank].clone()
        return replace(self, basis=basis, eigenvalues=eigenvalues, half_agreement=None)


@dataclass(frozen=True)
class SubspaceInfo:
    """Where a subspace comes from; the defaults are for one that was made by hand.

    Attributes:
        model: name or path of the base model, if known.
        revision: its commit on the hub, if known.
        fingerprint: of the covered layers' names, shapes and weights.
        data_fingerprint: of the samples' token ids.
        kind: ``"empirical"`` (the data's responses), ``"sampled"`` (the model's own) or ``"random"`` (the control).
        method: ``"exact"``, ``"sketched"`` or, where layers differ, ``"mixed"``.
        reduction: ``"mean"`` or ``"sum"`` over a response's tokens.
        samples: number of samples.
        tokens: number of response tokens.
        energy: the energy aimed at, or ``None`` for a fixed rank.
        sketch_width: columns of the test matrix of the sketched layers, 0 without any.
        half_agreement: mean over layers of the layers' own; ``None`` where it was not measured.
        seed: of the halves, the test matrices and the samples.
        created: date and time, ISO 8601, UTC.
        version: of loralign.
        passes: over the data.
        response_tokens: first tokens of a response that counted; ``None`` for all of them.
    """

    model: str | None = None
    revision: str | None = None
    fingerprint: str = ""
    data_fingerprint: str = ""
    kind: str = "empirical"
    method: str = "exact"
    reduction: str = "mean"
    samples: int = 0
    tokens: int = 0
    energy: float | None = None
    sketch_width: int = 0
    half_agreement: float | None = None
    seed: int = 0
    created: str = ""
    version: str = ""
    passes: int = 1
    response_tokens: int | None = None


def soft_coefficients(eigenvalues: Tensor, projection: Projection) -> Tensor:
    """Weights ``c (q,)`` of the directions in ``P_A = U diag(c) Uᵀ`` (docs/adapting.md, Parts).

    Hard: ``c = 1``. Soft: ``c_i = λ_i/(λ_i + κ)`` with ``κ`` the median eigenvalue, so that the median direction has
    ``c = ½``; of an even number of directions, the mean of the middle two is the median. Where all eigenvalues are
    zero, ``c = ½``.

    Args:
        eigenvalues: ``(q,)``, not negative, in any unit.
        projection: ``"hard"`` or ``"soft"``.

    Raises:
        ConfigError: another projection.
    """
    if projection == "hard":
        return torch.ones_like(eigenvalues)
    if projection != "soft":
        raise ConfigError(f"projection {projection!r} is unknown", fix="use 'hard' or 'soft'")
    if not eigenvalues.numel():
        return eigenvalues.clone()
    total = eigenvalues + eigenvalues.quantile(0.5)
    return torch.where(total > 0, eigenvalues / total, torch.full_like(total, 0.5))


def mean_squared_cosine(first: Tensor, second: Tensor) -> float:
    """Mean squared cosine of the principal angles between ``col(U)`` and ``col(V)``, over the smaller rank.

    ``‖UᵀV‖²_F / min(q, p)`` for orthonormal ``U (m, q)`` and ``V (m, p)``; zero where either has no column.
    """
    smaller = min(first.shape[1], second.shape[1])
    if smaller == 0:
        return 0.0
    return float((first.double().mT @ second.double()).square().sum()) / smaller


def layer_similarity(name: str, first: LayerSubspace, second: LayerSubspace) -> float:
    """:func:`mean_squared_cosine` of two subspaces of one layer.

    Raises:
        StateError: they are of layers of different shapes.
    """
    if (first.rows, first.columns) != (second.rows, second.columns):
        raise StateError(
            f"one subspace is of shape {(first.rows, first.columns)} and the other of {(second.rows, second.columns)}",
            place=name,
            fix="compare subspaces of the same model",
        )
    return mean_squared_cosine(first.basis, second.basis)
