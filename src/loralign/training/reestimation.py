"""Estimating a guard's subspace again at the weights of the moment, in the way that it was estimated at first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from loralign.data.completions import Completion, openings
from loralign.guard import AlignmentSubspace, SubspaceInfo, estimate_fisher
from loralign.guard.fisher_estimation import data_fingerprint
from loralign.guard.fisher_options import Method


def of_other_samples(info: SubspaceInfo, alignment: Sequence[Completion]) -> bool:
    """Whether a subspace is known to have been estimated from other samples than these.

    Args:
        info: where the subspace comes from; one that was made by hand does not say.
        alignment: what it would be estimated from again.
    """
    return bool(info.data_fingerprint) and info.data_fingerprint != data_fingerprint(
        openings(alignment, info.response_tokens)
    )


def estimate_again(
    model: nn.Module, alignment: Sequence[Completion], before: AlignmentSubspace, seed: int
) -> AlignmentSubspace:
    """The subspace at a model's present weights: of the layers of ``before``, with no more directions than there.

    Kind, reduction, opening, sketch and passes are those of ``before``. A layer whose Fisher matrix supports fewer
    directions now has as many as it does, which is no reason to keep an old subspace in all the others.

    Args:
        model: with its adapter, whose layers are those of ``before``.
        alignment: the samples.
        before: the subspace in force.
        seed: of the test matrices and the sampled responses.

    Raises:
        DataError: the samples are too few even for one direction of some layer.
        LoralignError: as :func:`~loralign.guard.estimate_fisher`.
    """
    info = before.info
    ranks = {name: layer.rank for name, layer in before.layers.items()}
    largest = max(ranks.values())
    found = estimate_fisher(
        model,
        alignment,
        kind="sampled" if info.kind == "sampled" else "empirical",
        method=_method(info),
        reduction="sum" if info.reduction == "sum" else "mean",
        max_length=max(len(one.ids) for one in alignment),
        response_tokens=info.response_tokens,
        # All the energy that there is: every direction up to the largest rank, as far as a layer has them.
        energy=1.0,
        min_rank=1,
        max_rank=largest,
        oversampling=max(0, info.sketch_width - largest) if info.sketch_width else None,
        passes=info.passes,
        # A poor estimate is for the monitors to tell of.
        min_agreement=0.0,
        show_progress=False,
        seed=seed,
    )
    return found.with_ranks(ranks)


def _method(info: SubspaceInfo) -> Method:
    """The method that leads to the same sums again."""
    if info.samples == 0 or info.method == "mixed":
        # Made by hand, without a method; or sketched where that is quicker, which the same width decides alike.
        return "auto"
    return "exact" if info.method == "exact" else "sketched"
