"""Task, drift and refusals of an adapter, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loralign.data.completions import Completion
from loralign.evaluation import Estimate, completion_losses, mean_estimate
from loralign.guard import AlignmentSubspace
from loralign.models import LoadedModel
from loralign.runs.kept_scores import KeptScores, sample_rows, sample_table, score_kept


@dataclass(frozen=True)
class AdaptScores(KeptScores):
    """What an adaptation gained and lost.

    Attributes:
        task_before: loss of the start on held-back task samples, nats per response token, mean over samples.
        task_after: the same of the adapted model.
        task_gain: the paired difference, before minus after.
        samples: what was measured on every single sample, as :data:`~loralign.runs.kept_scores.SAMPLE_COLUMNS`.
    """

    task_before: Estimate
    task_after: Estimate
    task_gain: Estimate
    samples: dict[str, list[Any]] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """As plain values, without those of single samples."""
        values = asdict(self)
        del values["samples"]
        return {"version": 1, "kind": "adapt", **values}


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
    kept, rows = score_kept(model, loaded, probe, judged, subspace, probe_tokens)
    with model.disable_adapter():
        before = completion_losses(model, task, pad_id=pad)
    after = completion_losses(model, task, pad_id=pad)
    return AdaptScores(
        **vars(kept),
        task_before=mean_estimate(before),
        task_after=mean_estimate(after),
        task_gain=mean_estimate(before - after),
        samples=sample_table([*sample_rows("task_loss", before, after), *rows]),
    )
