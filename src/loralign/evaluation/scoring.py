"""Scoring preference pairs under a policy and its reference: one forward of each per batch serves every measure."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from loralign.errors import DataError, NonFiniteError
from loralign.evaluation.pairs import FloatArray, IntArray, PairScores
from loralign.evaluation.sequence_sums import sequence_sums


def score_pairs(
    model: PreTrainedModel | PeftModel,
    tokenised: Dataset,
    *,
    reference: str | torch.nn.Module = "base",
    batch_tokens: int = 2048,
    max_length: int | None = None,
    progress: bool = True,
) -> PairScores:
    """Log-probabilities of both responses of every pair under policy and reference, and the divergence between the two.

    The model computes in its own dtype, as in ``model(**inputs).logits``; from the logits on everything is float32 and
    the sums are float64. In bfloat16 two forwards that differ by little more than rounding are some 1e-3 nats per token
    apart (measured on SmolLM2-135M): a smaller drift, and the accuracy by reward of a hardly trained adapter, need a
    model in float32. An adapter that changes nothing gives exactly zero in any dtype.

    The model's training mode, gradient flags and active adapter are afterwards as before.

    Args:
        model: the policy, a causal language model with or without a PEFT adapter.
        tokenised: from :func:`~loralign.evaluation.tokenising.tokenise_pairs`, or any dataset with ``prompt_ids``,
            ``chosen_ids``, ``rejected_ids`` and ``objective``.
        reference: ``"base"`` (the adapter switched off), ``"none"``, the name of another adapter of the model (TRL
            calls a frozen copy ``"ref"``), or a model of its own with the same vocabulary.
        batch_tokens: most tokens of one batch, padding included.
        max_length: longest prompt + response; the end of longer ones is left out.
        progress: show a progress bar with the remaining time, in tokens with their padding, which is what time goes by.

    Raises:
        ConfigError: ``batch_tokens`` is not positive.
        DataError: there are no pairs, or a response has no token that could be scored.
        ModelError: the model or reference cannot be scored with.
        AdapterError: the model has no adapter of the reference's name.
        NonFiniteError: a log-probability or divergence is infinite or not a number.
    """
    sequences, prompts = _sequences(tokenised, max_length)
    objectives = tuple(tokenised["objective"])
    known = tokenised["row"] if "row" in tokenised.column_names else range(len(tokenised))
    rows = np.asarray(known, dtype=np.int64)
    tokens = np.array([len(s) - max(p, 1) for s, p in zip(sequences, prompts, strict=True)], dtype=np.int64)
    _check_tokens(tokens, rows)
    sums = sequence_sums(
        model,
        sequences,
        prompts,
        reference=reference,
        batch_tokens=batch_tokens,
        progress=progress,
        description="scoring pairs",
    )
    _check_finite(sums, rows, objectives)
    return PairScores(objectives, rows, tokens.reshape(-1, 2), *(total.reshape(-1, 2) for total in sums))


def _sequences(tokenised: Dataset, max_length: int | None) -> tuple[list[list[int]], list[int]]:
    """Prompt + response of chosen and rejected in turn, and the number of prompt tokens of each."""
    sequences, prompts = [], []
    columns = (tokenised["prompt_ids"], tokenised["chosen_ids"], tokenised["rejected_ids"])
    for prompt, *responses in zip(*columns, strict=True):
        sequences += [(prompt + response)[:max_length] for response in responses]
        prompts += [len(prompt)] * 2
    return sequences, prompts


def _check_tokens(tokens: IntArray, rows: IntArray) -> None:
    if len(tokens) == 0:
        raise DataError("there are no preference pairs to score", place="preference pairs", fix="give at least one")
    if tokens.min() < 1:
        empty = int(np.argmin(tokens))
        raise DataError(
            f"the {('chosen', 'rejected')[empty % 2]} response has no token to score",
            place=f"pair {rows[empty // 2]}",
            fix="drop the pair or raise max_length",
        )


def _check_finite(sums: FloatArray, rows: IntArray, objectives: tuple[str, ...]) -> None:
    broken = np.flatnonzero(~np.isfinite(sums).all(axis=0))
    if len(broken):
        pair, response = divmod(int(broken[0]), 2)
        raise NonFiniteError(
            f"the {('chosen', 'rejected')[response]} response of {len(broken)} or more has a probability or divergence "
            "that is not finite",
            place=f"pair {rows[pair]} ({objectives[pair]})",
            fix="look for weights that are not finite, or load the model in another dtype",
        )
