"""Task, drift and refusals of an adapter, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loralign.data.completions import Completion
from loralign.evaluation import Estimate, PhraseJudge, completion_losses, generate_answers, mean_estimate, safety_scores
from loralign.guard import AlignmentSubspace, ProbeSet, total_share
from loralign.lora import lora_layers
from loralign.models import LoadedModel


@dataclass(frozen=True)
class AdaptScores:
    """What an adaptation gained and lost.

    Attributes:
        task_before: loss of the start on held-back task samples, nats per response token, mean over samples.
        task_after: the same of the adapted model.
        task_gain: the paired difference, before minus after.
        drift: divergence ``KL(start‖now)`` on the probe's responses, nats per token.
        logprob_lost: log-probability that those responses lost, nats per token.
        safety_before: refusals and over-refusals of the start, or ``None`` where no answers were generated.
        safety_after: the same of the adapted model.
        share: share of the update's squared norm in the alignment subspace; ``None`` without one.
    """

    task_before: Estimate
    task_after: Estimate
    task_gain: Estimate
    drift: Estimate
    logprob_lost: Estimate
    safety_before: dict[str, Any] | None
    safety_after: dict[str, Any] | None
    share: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"version": 1, "kind": "adapt", **asdict(self)}


def score_adaptation(
    model: Any,
    loaded: LoadedModel,
    task: Sequence[Completion],
    probe: Sequence[Completion],
    judged: Any,
    subspace: AlignmentSubspace | None,
    probe_tokens: int | None = None,
) -> AdaptScores:
    """Score a PEFT model against its own base, which the disabled adapter is.

    Args:
        model: with one LoRA adapter.
        loaded: the base's tokenizer.
        task: held-back samples of the task.
        probe: must-survive samples that nothing was estimated on.
        judged: rows whose prompts are answered and judged, or ``None``.
        subspace: to say how much of the update lies in it.
        probe_tokens: first response tokens that drift is measured on; all of them by default.
    """
    pad = loaded.tokenizer.pad_token_id
    model.eval()
    layers = lora_layers(model)
    drift = ProbeSet(probe, pad_id=pad, response_tokens=probe_tokens)
    with model.disable_adapter():
        drift.cache(model)
        before = completion_losses(model, task, pad_id=pad)
        safety_before = None if judged is None else judge_answers(model, loaded, judged, "before")
    found = drift.measure(model)
    after = completion_losses(model, task, pad_id=pad)
    return AdaptScores(
        task_before=mean_estimate(before),
        task_after=mean_estimate(after),
        task_gain=mean_estimate(before - after),
        drift=mean_estimate(found.per_sample_kl),
        logprob_lost=mean_estimate(found.per_sample_lost),
        safety_before=safety_before,
        safety_after=None if judged is None else judge_answers(model, loaded, judged, "after"),
        share=None if subspace is None else total_share(layers, subspace.match(layers, partial=True)),
    )


def judge_answers(model: Any, loaded: LoadedModel, judged: Any, moment: str) -> dict[str, Any]:
    """Answer the prompts of must-survive rows and judge the answers: refusal, over-refusal, by category.

    Args:
        model: with or without an adapter.
        loaded: its tokenizer.
        judged: rows with ``prompt``, ``label`` and ``category``.
        moment: what the progress bar says.
    """
    prompts = list(judged["prompt"])
    answers = generate_answers(model, loaded.tokenizer, prompts, max_new_tokens=48, description=f"answering, {moment}")
    found: dict[str, Any] = safety_scores(
        prompts, judged["label"], judged["category"], answers, PhraseJudge()
    ).to_json()
    return found
