"""Log-probabilities and divergences summed over the responses of token sequences, in batches of few shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from loralign.data.batching import Batch, make_batch, plan_batches
from loralign.errors import ConfigError
from loralign.evaluation.divergence import token_statistics
from loralign.evaluation.pairs import FloatArray
from loralign.evaluation.rows import LogitRows, RowLogits
from loralign.evaluation.views import adapter_view, check_adapter
from loralign.guard.modes import evaluating

# Logits computed at once: 32 MiB of float32, so that the passes over them stay near the processor's caches.
_LOGITS_AT_ONCE = 2**23


def sequence_sums(
    model: PreTrainedModel | PeftModel,
    sequences: Sequence[Sequence[int]],
    prompts: Sequence[int],
    *,
    reference: str | torch.nn.Module = "none",
    batch_tokens: int = 2048,
    progress: bool = True,
    description: str = "scoring",
) -> FloatArray:
    """Sums over the response tokens of each sequence, ``(4, sequences)``, or ``(1, sequences)`` without a reference.

    The rows are those of :class:`~loralign.evaluation.divergence.TokenStatistics`: log π, log π_ref, KL(π‖π_ref) and
    KL(π_ref‖π), in nats. Models compute in their own dtype, logits become float32 or better and sums are float64. The
    models' training mode, gradient flags and active adapter are afterwards as before.

    Args:
        model: causal language model with or without a PEFT adapter.
        sequences: token ids of prompt + response.
        prompts: tokens of each prompt.
        reference: ``"none"``, ``"base"`` (the adapter switched off), the name of another adapter of the model, or a
            model of its own with the same vocabulary.
        batch_tokens: most tokens of one batch, padding included.
        progress: show a progress bar in tokens with their padding, which is what time goes by.
        description: what the bar says.

    Raises:
        ConfigError: ``batch_tokens`` is not positive, or the reference has another vocabulary.
        ModelError: a model has no output embedding, or no adapter to switch off.
        AdapterError: the model has no adapter of the reference's name.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}", place="batch_tokens", fix="give a positive number")
    if isinstance(reference, str) and reference != "none":
        check_adapter(model, reference)
    policy = RowLogits(model)
    other = _reference_logits(model, reference, policy.vocabulary)
    sums = np.zeros((4 if other else 1, len(sequences)))
    chunk = _rows_at_once(policy.vocabulary)
    limit = getattr(model.config, "max_position_embeddings", None)
    plan = list(plan_batches([len(sequence) for sequence in sequences], batch_tokens, limit))
    work = sum(len(members) * length for members, length in plan)
    models = {id(m): m for m in (model, reference) if isinstance(m, torch.nn.Module)}
    with evaluating(*models.values()), tqdm(total=work, desc=description, unit="token", disable=not progress) as bar:
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
    return sums


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
