"""From sums to subspaces: how many directions are kept, and whether there are enough samples for them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from loralign.errors import DataError, NonFiniteError
from loralign.guard.accumulator import FisherSums
from loralign.guard.fisher_options import FisherOptions
from loralign.guard.identity import LayerIdentity
from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.nystrom import leading_eigenvectors, leading_eigenvectors_of_many

# Rows of a whole matrix that is decomposed completely: on the CPU, or together with others on a GPU.
_SMALL = 1024
# Entries of the sums that a GPU decomposes at once: bounds the working memory, about ten times this in float64.
_BATCHED = 2**22


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
    own = list(identities.values())
    found: dict[int, LayerSubspace] = {}
    for members in _batches(sums):
        chosen = _select_batch([own[i] for i in members], [sums[i] for i in members], counts, options)
        found |= dict(zip(members, chosen, strict=True))
    layers = {name: found[index] for index, name in enumerate(identities)}
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


def _batches(sums: Sequence[FisherSums]) -> Iterator[list[int]]:
    """Which layers are decomposed together: on a GPU those of one shape, a few at a time; elsewhere each by itself."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(sums):
        shape = (one.test is None, one.moment.shape, one.moment.dtype, one.moment.device)
        groups[shape if _batchable(one) else (index,)].append(index)
    for members in groups.values():
        size = max(1, _BATCHED // sums[members[0]].moment[0].numel())
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _batchable(sums: FisherSums) -> bool:
    return sums.moment.is_cuda and (sums.test is not None or sums.rows <= _SMALL)


def _select_batch(
    identities: Sequence[LayerIdentity], sums: Sequence[FisherSums], counts: Sequence[int], options: FisherOptions
) -> list[LayerSubspace]:
    """The subspaces of layers that are decomposed together."""
    samples = sum(counts)
    traces = [float(one.squares.sum()) / samples for one in sums]
    pairs = _leading(sums, None, samples, options.largest_rank, torch.float64)
    ranks = [choose_rank(values, trace, options) for (_, values), trace in zip(pairs, traces, strict=True)]
    halves = [_leading(sums, half, 1, max(ranks), torch.float32) for half in (0, 1)]
    found = []
    for index, (vectors, values) in enumerate(pairs):
        rank = ranks[index]
        first, second = (half[index][0][:, :rank] for half in halves)
        # Directions that a half has not got count as not shared.
        agreement = float((first.mT @ second).square().sum()) / rank if rank else 0.0
        basis, eigenvalues = vectors[:, :rank].float().contiguous(), values[:rank].float().contiguous()
        identity = identities[index]
        found.append(
            LayerSubspace(basis.cpu(), eigenvalues.cpu(), traces[index], identity.columns, agreement, identity.weights)
        )
    return found


def _leading(
    sums: Sequence[FisherSums], half: int | None, scale: int, count: int, work: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Leading eigenpairs of every layer's sum over one half, or over both, divided by ``scale``.

    A layer by itself is computed in ``work``, several in float64.
    """
    if len(sums) > 1:
        tests = [one.test for one in sums if one.test is not None]
        moments = torch.stack([one.total(half) / scale for one in sums])
        return leading_eigenvectors_of_many(moments, torch.stack(tests) if tests else None, count)
    total = _near(sums[0], half)
    test = None if sums[0].test is None else sums[0].test.to(total.device)
    return [leading_eigenvectors(total / scale, test, count, work)]


def _near(sums: FisherSums, half: int | None) -> Tensor:
    """A layer's sum where its decomposition is fast: a small one alone is not worth a GPU's start."""
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
