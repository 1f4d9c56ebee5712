"""Estimating the alignment-critical subspaces of a model from samples whose responses must survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn

from loralign.data.completions import Completion, openings, tokenise_completions
from loralign.errors import ConfigError, DataError
from loralign.guard.attachment import measurable
from loralign.guard.fisher_estimation import FisherEstimation
from loralign.guard.fisher_options import FisherOptions, Kind, Method, Reduction
from loralign.guard.identity import model_name, model_revision
from loralign.guard.subspace import AlignmentSubspace


def estimate_fisher(
    model: nn.Module,
    completions: Sequence[Completion] | Dataset,
    *,
    tokenizer: Any = None,
    kind: Kind = "empirical",
    method: Method = "auto",
    energy: float = 0.8,
    min_rank: int = 4,
    max_rank: int = 64,
    rank: int | None = None,
    oversampling: int | None = None,
    passes: int | None = None,
    batch_size: int = 8,
    max_length: int = 256,
    response_tokens: int | None = None,
    reduction: Reduction = "mean",
    target_modules: str | Sequence[str] = "all-linear",
    min_agreement: float = 0.25,
    seed: int = 0,
    name: str | None = None,
    revision: str | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 16,
    show_progress: bool = True,
) -> AlignmentSubspace:
    """The leading eigenvectors of every layer's output-side Fisher matrix ``F = E_s[G_s G_sᵀ]``.

    ``G_s (m, n)`` is the gradient of one sample's loss, the negative log-likelihood of its response, with respect to
    the layer's full weight (docs/adapting.md, Fisher subspace). All samples of a batch are measured in one
    ordinary backward pass of the sum of their losses; every statistic is float32 or better.

    The model is left exactly as it was found: weights, gradients, modules, flags, training mode. A model with a LoRA
    adapter is measured at its present weights, at the adapter's layers; a plain one gets a temporary adapter that adds
    nothing. Where ``torch.distributed`` is initialised, every process measures its share of the batches and all get the
    same result.

    The samples are split into two halves, at random but with the same mix of labels, and how far the subspaces of both
    agree is kept with the result. Too few samples are an error: fewer than two; fewer than the least rank needs for
    some layer (the rank of ``F`` is at most the number of tokens); or halves that agree less than ``min_agreement``.

    Args:
        model: a causal language model of transformers, with or without LoRA.
        completions: tokenised samples, or a dataset with ``prompt`` and ``completion`` columns and a ``tokenizer``.
        tokenizer: needed for a dataset.
        kind: see :class:`~loralign.guard.fisher_options.FisherOptions`, as for the arguments that follow.
        method: as there.
        energy: as there.
        min_rank: as there.
        max_rank: as there.
        rank: as there.
        oversampling: as there.
        passes: as there.
        batch_size: as there; in one process the result does not depend on it, up to rounding.
        max_length: as there; longer responses are cut off. Sampled responses are no longer than the data's longest.
        response_tokens: as there.
        reduction: as there.
        target_modules: layers to measure of a plain model, as in ``peft.LoraConfig``.
        min_agreement: as there.
        seed: as there.
        name: of the base model, for the record; by default what it was loaded from.
        revision: of the base model, likewise.
        checkpoint: a directory in which the sums are saved now and then. A call that finds some of the same settings,
            samples and weights goes on from them, with the same result to the last bit. Removed at the end.
        checkpoint_every: batches between two savings.
        show_progress: show a bar with the remaining time.

    Raises:
        ConfigError: a setting is out of range, or a dataset comes without tokenizer.
        DataError: a sample has no response within ``max_length``, or the samples are too few.
        ModelError: the model is not a causal language model.
        AdapterError: its adapter is not plain LoRA, or a layer's input does not tell samples apart.
        StateError: the checkpoint is damaged or of other settings.
        NonFiniteError: a loss or a sum is infinite or not a number.
    """
    options = FisherOptions(
        kind=kind,
        method=method,
        energy=energy,
        min_rank=min_rank,
        max_rank=max_rank,
        rank=rank,
        oversampling=oversampling,
        passes=passes,
        batch_size=batch_size,
        max_length=max_length,
        response_tokens=response_tokens,
        reduction=reduction,
        min_agreement=min_agreement,
        seed=seed,
    )
    samples = _prepare(completions, tokenizer, options)
    with measurable(model, target_modules):
        estimation = FisherEstimation(model, samples, options, show_progress)
        try:
            estimation.run(None if checkpoint is None else Path(checkpoint), checkpoint_every)
        finally:
            estimation.capture.close()
        return estimation.finish(name or model_name(model), revision or model_revision(model))


def _prepare(completions: Sequence[Completion] | Dataset, tokenizer: Any, options: FisherOptions) -> list[Completion]:
    if isinstance(completions, Dataset):
        if tokenizer is None:
            raise ConfigError("a dataset needs a tokenizer", place="estimate_fisher", fix="give tokenizer=")
        completions = tokenise_completions(completions, tokenizer, options.max_length)
    samples = [
        replace(one, ids=list(one.ids[: options.max_length])) for one in openings(completions, options.response_tokens)
    ]
    if len(samples) < 2:
        raise DataError(f"{len(samples)} samples are too few to estimate a Fisher matrix from", fix="give at least 2")
    first = 1 if options.kind == "empirical" else 0
    for sample in samples:
        if len(sample.ids) <= max(sample.prompt_length, 1):
            raise DataError(
                f"the response has no token within the first {options.max_length}",
                place=f"sample {sample.row}",
                fix="drop it, or raise max_length",
            )
        if sample.prompt_length < 1 - first:
            raise DataError("the sample has no prompt to sample a response to", place=f"sample {sample.row}")
    return samples
