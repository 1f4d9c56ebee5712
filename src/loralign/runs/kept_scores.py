"""What became of what had to survive: drift and refusals of an adapter, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loralign.data.completions import Completion
from loralign.evaluation import Estimate, PhraseJudge, generate_answers, mean_estimate, safety_scores
from loralign.guard import AlignmentSubspace, ProbeSet, total_share
from loralign.lora import lora_layers
from loralign.models import LoadedModel

SAMPLE_SCORES = "sample_scores.parquet"
"""The scores of single samples, for intervals of what several runs have in common."""

ANSWER_TOKENS = 48
"""Of the answers that are judged or shown at the end of a run, at most."""

SAMPLE_COLUMNS = ("measure", "sample", "label", "before", "after")
"""Of the table of single samples: ``task_loss`` (nats per token), ``drift`` (the divergence, 0 at the start) and
``refused`` (0 or 1), each numbered from 0, with the label of the prompt where it has one."""

Row = tuple[Any, ...]
"""Of that table."""


@dataclass(frozen=True)
class KeptScores:
    """What an adapter lost of its start.

    Attributes:
        drift: divergence ``KL(start‖now)`` on the probe's responses, nats per token.
        logprob_lost: log-probability that those responses lost, nats per token.
        safety_before: refusals and over-refusals of the start, or ``None`` where no answers were generated.
        safety_after: the same of the model with the adapter.
        share: share of the update's squared norm in the alignment subspace; ``None`` without one.
    """

    drift: Estimate
    logprob_lost: Estimate
    safety_before: dict[str, Any] | None
    safety_after: dict[str, Any] | None
    share: float | None


def score_kept(
    model: Any,
    loaded: LoadedModel,
    probe: Sequence[Completion],
    judged: Any,
    subspace: AlignmentSubspace | None,
    probe_tokens: int | None = None,
) -> tuple[KeptScores, list[Row]]:
    """Score a PEFT model against its own base, which the disabled adapter is.

    Args:
        model: whose active adapter is the only change of its base.
        loaded: the base's tokenizer.
        probe: must-survive samples that nothing was estimated on.
        judged: rows whose prompts are answered and judged, or ``None``.
        subspace: to say how much of the update lies in it.
        probe_tokens: first response tokens that drift is measured on; all of them by default.

    Returns:
        The scores, and those of single samples as rows of :data:`SAMPLE_COLUMNS`.
    """
    model.eval()
    layers = lora_layers(model)
    drift = ProbeSet(probe, pad_id=loaded.tokenizer.pad_token_id, response_tokens=probe_tokens)
    with model.disable_adapter():
        drift.cache(model)
        safety_before = None if judged is None else judge_answers(model, loaded, judged, "before")
    found = drift.measure(model)
    safety_after = None if judged is None else judge_answers(model, loaded, judged, "after")
    rows = [*sample_rows("drift", torch.zeros(len(probe)), found.per_sample_kl)]
    if safety_before is not None and safety_after is not None:
        refused_before, refused_after = (torch.tensor(one["refused"]) for one in (safety_before, safety_after))
        rows += sample_rows("refused", refused_before, refused_after, judged["label"])
    kept = KeptScores(
        drift=mean_estimate(found.per_sample_kl),
        logprob_lost=mean_estimate(found.per_sample_lost),
        safety_before=safety_before,
        safety_after=safety_after,
        share=None if subspace is None else total_share(layers, subspace.match(layers, partial=True)),
    )
    return kept, rows


def sample_rows(
    measure: str, before: torch.Tensor, after: torch.Tensor, labels: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield rows of :data:`SAMPLE_COLUMNS` for values before and after, ``(samples,)`` each."""
    for index, pair in enumerate(zip(before.double().tolist(), after.double().tolist(), strict=True)):
        yield measure, index, "" if labels is None else labels[index], *pair


def sample_table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return rows as columns, by :data:`SAMPLE_COLUMNS`."""
    return {name: list(column) for name, column in zip(SAMPLE_COLUMNS, zip(*rows, strict=True), strict=True)}


def judge_answers(model: Any, loaded: LoadedModel, judged: Any, moment: str) -> dict[str, Any]:
    """Answer the prompts of must-survive rows and judge the answers: refusal, over-refusal, by category.

    Args:
        model: with or without an adapter.
        loaded: its tokenizer.
        judged: rows with ``prompt``, ``label`` and ``category``.
        moment: what the progress bar says.
    """
    prompts = list(judged["prompt"])
    answers = generate_answers(
        model, loaded.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS, description=f"answering, {moment}"
    )
    found: dict[str, Any] = safety_scores(
        prompts, judged["label"], judged["category"], answers, PhraseJudge()
    ).to_json()
    return found
