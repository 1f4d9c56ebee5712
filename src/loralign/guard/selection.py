"""From sums to subspaces: how many directions are kept, and whether there are enough samples for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from loralign.errors import DataError, NonFiniteError
from loralign.guard.accumulator import FisherSums
from loralign.guard.fisher_options import FisherOptions
from loralign.guard.identity import LayerIdentity
from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.nystrom import leading_eigenvectors

# Rows of a whole matrix that is decomposed on the CPU.
_SMALL = 1024


def select_layers(
    identities: Mapping[str, LayerIdentity], sums: Iterable[FisherSums], counts: Sequence[int], options: FisherOptions
) -> dict[str, LayerSubspace]:
    """Every layer's subspace from its sums.

    Args:
        identities: names, shapes and digests of the layers.
        sums: of the layers, in the same order.
        counts: samples in each of the two halves.
        options: with the rule for the rank.

    Raises:
        DataError: the samples are too few for the least rank, their halves agree too little, or a layer is not reached.
        NonFiniteError: a sum is not finite.
    """
    sums = list(sums)
    _check_reached(identities, sums)
    layers = {
        name: _select_layer(name, identity, one, counts, options)
        for (name, identity), one in zip(identities.items(), sums, strict=True)
    }
    agreement = math.fsum(layer.half_agreement or 0.0 for layer in layers.values()) / len(layers)
    wanted = options.least_rank
    short = [name for name, layer in layers.items() if layer.rank < wanted(layer.rows)]
    samples = f"{sum(counts)} samples, whose halves agree to {agreement:.2f} (mean squared cosine)"
    if short:
        layer = layers[short[0]]
        raise DataError(
            f"{samples}, are too few: they support {layer.rank} of the {wanted(layer.rows)} directions asked for at "
            f"{short[0]}",
            place="alignment data",
            fix="give more samples, or lower the rank",
        )
    if agreement < options.min_agreement:
        raise DataError(
            f"{samples}, are too few for subspaces of up to {max(layer.rank for layer in layers.values())} directions",
            place="alignment data",
            fix=f"give more samples, lower the rank or energy, or lower min_agreement {options.min_agreement}",
        )
    return layers


def _check_reached(names: Iterable[str], sums: Sequence[FisherSums]) -> None:
    squares = [float(one.squares.sum()) for one in sums]
    for name, one, square in zip(names, sums, squares, strict=True):
        if not (math.isfinite(square) and bool(one.moment.isfinite().all())):
            raise NonFiniteError(
                "the Fisher matrix is not finite",
                place=name,
                fix="load the model in another dtype, or look at the data",
            )
    # What rounding leaves where there is no gradient is beyond the digits of any real one.
    least = torch.finfo(torch.float32).eps ** 2 * max(squares)
    for name, square in zip(names, squares, strict=True):
        if square <= least:
            raise DataError("no gradient reaches the layer", place=name, fix="leave it out of target_modules")


def _select_layer(
    name: str, identity: LayerIdentity, sums: FisherSums, counts: Sequence[int], options: FisherOptions
) -> LayerSubspace:
    samples = sum(counts)
    trace = float(sums.squares.sum()) / samples
    whole, *halves = (_near(sums, half) for half in (None, 0, 1))
    test = None if sums.test is None else sums.test.to(whole.device)
    vectors, values = leading_eigenvectors(whole / samples, test, options.largest_rank)
    rank = choose_rank(values, trace, options)
    parts = [leading_eigenvectors(half, test, rank, torch.float32)[0] for half in halves]
    # Directions that a half has not got count as not shared.
    agreement = float((parts[0].mT @ parts[1]).square().sum()) / rank if rank else 0.0
    basis, eigenvalues = vectors[:, :rank].float().contiguous(), values[:rank].float().contiguous()
    return LayerSubspace(basis.cpu(), eigenvalues.cpu(), trace, identity.columns, agreement, identity.weights)


def _near(sums: FisherSums, half: int | None) -> Tensor:
    """A sum where its decomposition is fast: small ones are not worth a GPU's start."""
    total = sums.total(half)
    return total.cpu() if sums.test is not None or len(total) <= _SMALL else total


def choose_rank(eigenvalues: Tensor, trace: float, options: FisherOptions) -> int:
    """The smallest ``q`` with ``Σ_{i≤q} λ_i ≥ energy · tr F``, within the bounds and the eigenvalues that there are.

    Args:
        eigenvalues: leading ones, descending.
        trace: ``tr F``.
        options: with energy and bounds, or a fixed rank.
    """
    if options.rank is not None:
        return min(options.rank, len(eigenvalues))
    below = int((eigenvalues.double().cumsum(0) < options.energy * trace).sum())
    return min(max(below + 1, options.min_rank), options.max_rank, len(eigenvalues))
