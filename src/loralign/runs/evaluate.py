"""``loralign evaluate``: scores of an adapter on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loralign.data import limit_length, load_preferences
from loralign.evaluation import PairScores, Scores, compare_scores, preference_scores, score_pairs, tokenise_pairs
from loralign.models.dtype import DtypeName
from loralign.runs.opening import open_local


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of the adapter, of its base, and the paired difference between them."""

    after: Scores
    before: Scores
    difference: Scores
    pairs: PairScores


def evaluate_adapter(
    adapter: str | Path,
    sources: Sequence[str],
    *,
    model: str | None = None,
    dtype: DtypeName = "auto",
    label_column: str = "objective",
    max_length: int = 1024,
    batch_tokens: int = 2048,
    beta: float = 0.1,
) -> EvaluationResult:
    """Score an adapter against its base on labelled pairs.

    Args:
        adapter: a PEFT LoRA directory.
        sources: validation pairs, as for :func:`loralign.data.load_preferences`.
        model: base model; by default the one that the adapter names.
        dtype: of the base weights; ``float32`` resolves drifts that bfloat16 rounds away.
        label_column: column with the objective's name.
        max_length: pairs with longer prompts are dropped, longer responses cut.
        batch_tokens: tokens per batch, padding included.
        beta: DPO's, for margins and losses.

    Raises:
        LoralignError: any fault of the adapter, the model or the data.
    """
    pairs_of = load_preferences(list(sources), label_column=label_column, split="validation")
    local = open_local(model, adapter, dtype)
    pairs_of, _ = limit_length(pairs_of, local.tokenizer, max_length=max_length, policy="truncate")
    tokenised = tokenise_pairs(pairs_of.dataset, local.tokenizer, max_length)
    pairs = score_pairs(local.model, tokenised, reference="base", batch_tokens=batch_tokens)
    return EvaluationResult(
        after=preference_scores(pairs, beta=beta),
        before=preference_scores(pairs.of_reference(), beta=beta),
        difference=compare_scores(pairs.of_reference(), pairs, beta=beta),
        pairs=pairs,
    )
