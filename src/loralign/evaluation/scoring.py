"""Scoring preference pairs under a policy and its reference: one forward of each per batch serves every measure."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from loralign.data.batching import Batch, make_batch, plan_batches
from loralign.errors import ConfigError, DataError, NonFiniteError
from loralign.evaluation.divergence import token_statistics
from loralign.evaluation.pairs import FloatArray, IntArray, PairScores
from loralign.evaluation.rows import LogitRows, RowLogits
from loralign.evaluation.views import adapter_view, check_adapter
from loralign.guard.modes import evaluating

# Logits computed at once: 32 MiB of float32, so that the passes over them stay near the processor's caches.
_LOGITS_AT_ONCE = 2**23


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
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}", place="batch_tokens", fix="give a positive number")
    if isinstance(reference, str) and reference != "none":
        check_adapter(model, reference)
    sequences, prompts = _sequences(tokenised, max_length)
    objectives = tuple(tokenised["objective"])
    known = tokenised["row"] if "row" in tokenised.column_names else range(len(tokenised))
    rows = np.asarray(known, dtype=np.int64)
    tokens = np.array([len(s) - max(p, 1) for s, p in zip(sequences, prompts, strict=True)], dtype=np.int64)
    _check_tokens(tokens, rows)
    policy = RowLogits(model)
    other = _reference_logits(model, reference, policy.vocabulary)
    sums = np.zeros((4 if other else 1, len(sequences)))
    chunk = _rows_at_once(policy.vocabulary)
    limit = getattr(model.config, "max_position_embeddings", None)
    plan = list(plan_batches([len(sequence) for sequence in sequences], batch_tokens, limit))
    work = sum(len(members) * length for members, length in plan)
    models = {id(m): m for m in (model, reference) if isinstance(m, torch.nn.Module)}
    with (
        evaluating(*models.values()),
        tqdm(total=work, desc="scoring pairs", unit="token", disable=not progress) as bar,
    ):
        for members, length in plan:
            batch = make_batch([sequences[i] for i in members], [prompts[i] for i in members], length, chunk)
            view = adapter_view(model, reference) if isinstance(reference, str) and other else contextlib.nullcontext()
            logits = policy(batch)
            with view:
                reference_logits = other(batch) if other else None
            values = _statistics(batch, logits, reference_logits, chunk)
            owner = members[batch.sequence[: batch.count].numpy()]
            for total, value in zip(sums, values, strict=True):
                total += np.bincount(owner, weights=value, minlength=len(sequences))
            bar.update(batch.input_ids.numel())
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


def _reference_logits(
    model: PreTrainedModel | PeftModel, reference: str | torch.nn.Module, vocabulary: int
) -> RowLogits | None:
    if reference == "none":
        return None
    other = RowLogits(model if isinstance(reference, str) else reference)
    if other.vocabulary != vocabulary:
        raise ConfigError(
            f"the reference has {other.vocabulary} tokens and the model {vocabulary}",
            place="reference",
            fix="use a reference with the same vocabulary",
        )
    return other


def _statistics(batch: Batch, policy: LogitRows, reference: LogitRows | None, chunk: int) -> FloatArray:
    """Log-probability and, with a reference, its log-probability and both divergences: ``(1 or 4, count)``."""
    parts = []
    for start in range(0, len(batch.labels), chunk):
        part = slice(start, start + chunk)
        logits = policy(part)
        other = None if reference is None else reference(part).to(logits.device)
        found = token_statistics(logits, batch.labels[part].to(logits.device), other)
        parts.append(torch.stack([value for value in found if value is not None]).cpu())
    return torch.cat(parts, dim=1)[:, : batch.count].numpy().astype(np.float64)


def _rows_at_once(vocabulary: int) -> int:
    """A power of two between 8 and 512 whose logits stay within the limit."""
    return int(min(max(1 << (_LOGITS_AT_ONCE // vocabulary).bit_length() - 1, 8), 512))


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
