"""``loralign repair``: mend an adapter that was trained without care."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loralign.errors import ConfigError, OutputError
from loralign.evaluation import Estimate, completion_losses, mean_estimate
from loralign.guard import AlignmentSubspace, PeerOptions, ProbeDrift, ProbeSet, RepairReport, repair
from loralign.guard.fisher_options import OPENING
from loralign.guard.layer_subspace import Projection
from loralign.guard.repair_search import check_budget
from loralign.models import LoadedModel, load_adapter, load_model, portable_base_name
from loralign.models.dtype import DtypeName
from loralign.runs.environment import onto_device
from loralign.runs.guarding import balanced, load_probe, load_tasks, tokenised
from loralign.runs.kept_scores import judge_answers
from loralign.runs.opening import open_base
from loralign.runs.output import save_adapter


@dataclass(frozen=True)
class RepairRun:
    """What a repair did, and what it was worth.

    Attributes:
        report: strengths and shares per layer.
        drift_before: divergence from the base on the probe, nats per token, of the adapter as it came.
        drift_after: of the repaired adapter.
        task: loss on task samples (nats per token) of the base, the adapter as it came and the repaired one; ``None``
            without task data.
        safety: refusals of the three, or ``None`` where no answers were generated.
        adapter: the adapter as it came.
    """

    report: RepairReport
    drift_before: Estimate
    drift_after: Estimate
    task: dict[str, Estimate] | None
    safety: dict[str, Any] | None
    adapter: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "version": 1,
            "kind": "repair",
            "adapter": self.adapter,
            "report": self.report.to_json(),
            "drift_before": vars(self.drift_before),
            "drift_after": vars(self.drift_after),
            "task": None if self.task is None else {name: vars(one) for name, one in self.task.items()},
            "safety": self.safety,
        }


METHODS = ("fisher", "random", "scale", "safe_lora", "intruder")


@dataclass(frozen=True)
class RepairOptions:
    """How to repair; see :func:`loralign.guard.repair`.

    ``rank`` takes so many leading directions of every layer's subspace, in place of all: fewer cost the task less and
    leave more of the drift.
    """

    method: str = "fisher"
    strength: float | None = None
    drift_budget: float | None = None
    rank: int | None = None
    per_layer: bool = False
    by_rank: bool = False
    projection: Projection = "hard"
    partial: bool = False
    unaligned: str | None = None
    peers: PeerOptions = field(default_factory=PeerOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method {self.method!r} is unknown", place="--method", fix=f"use {', '.join(METHODS)}")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ConfigError(f"strength {self.strength} is not in 0 to 1", place="--strength")
        if self.strength is not None and self.drift_budget is not None:
            raise ConfigError("a strength and a budget exclude each other", place="--strength", fix="give one of them")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank {self.rank} leaves no direction", place="--rank", fix="use at least 1")
        if self.drift_budget is not None:
            check_budget(self.drift_budget)


def repair_adapter(
    adapter: str,
    output: Path,
    options: RepairOptions,
    *,
    subspace: str | None = None,
    probe_data: Sequence[str] = ("builtin",),
    probe_samples: int = 48,
    probe_tokens: int = OPENING,
    task_data: Sequence[str] = (),
    task_samples: int = 64,
    judged_prompts: int = 0,
    model: str | None = None,
    dtype: DtypeName = "auto",
    max_length: int = 256,
) -> RepairRun:
    """Repair an adapter and write the result as a new one.

    Args:
        adapter: a PEFT LoRA directory.
        output: where the repaired adapter goes; must not exist.
        options: method and strength.
        subspace: a directory of ``loralign fisher``; the methods ``fisher`` and ``random`` need it.
        probe_data: prompts with responses that must survive; their validation split measures the drift.
        probe_samples: samples of the probe.
        probe_tokens: first tokens of their responses that drift is measured on; 0 is all of them.
        task_data: task samples, to say what the repair costs.
        task_samples: of those.
        judged_prompts: probe prompts answered and judged; 0 is off.
        model: base model; by default the one that the adapter names.
        dtype: of the base weights.
        max_length: of all samples, in tokens.

    Raises:
        LoralignError: any fault of adapter, subspace, data or options; ``output`` exists.
    """
    if output.exists():
        raise OutputError("exists", place=str(output), fix="choose another place with --output")
    if options.method in ("fisher", "random") and subspace is None:
        raise ConfigError(f"method {options.method!r} needs a subspace", place="--subspace", fix="run loralign fisher")
    rows = balanced(load_probe(list(probe_data)), max(probe_samples, judged_prompts))
    task = load_tasks(list(task_data), "validation") if task_data else None
    loaded = onto_device(open_base(adapter, model, dtype))
    base = portable_base_name(loaded.source.name)
    probe = ProbeSet(
        tokenised(rows.select(range(min(len(rows), probe_samples))), loaded, max_length),
        pad_id=loaded.tokenizer.pad_token_id,
        response_tokens=probe_tokens or None,
    )
    known = None if subspace is None else AlignmentSubspace.load(subspace, loaded.model)
    if known is not None and options.rank is not None:
        known = known.truncated(options.rank)
    unaligned = None
    if options.unaligned is not None:
        unaligned = onto_device(load_model(options.unaligned, dtype=dtype)).model
    peft_model, _, _ = load_adapter(adapter, loaded)
    peft_model.eval()
    scorer = _Scorer(peft_model, loaded, task, task_samples, rows, judged_prompts, max_length)
    with peft_model.disable_adapter():
        probe.cache(peft_model)
        scorer.score("base")
    scorer.score("before")
    measured: list[ProbeDrift] = []

    def drift() -> float:
        measured.append(probe.measure(peft_model))
        return measured[-1].kl

    before = probe.measure(peft_model)
    report = repair(
        peft_model,
        known,
        method=options.method,
        strength=options.strength,
        drift_budget=options.drift_budget,
        measure=drift,
        per_layer=options.per_layer,
        by_rank=options.by_rank,
        projection=options.projection,
        partial=options.partial,
        unaligned=unaligned,
        options=options.peers,
        seed=options.seed,
    )
    scorer.score("after")
    result = RepairRun(
        report,
        mean_estimate(before.per_sample_kl),
        mean_estimate(probe.measure(peft_model).per_sample_kl),
        scorer.task,
        scorer.safety,
        adapter,
    )
    save_adapter(peft_model, loaded.tokenizer, base, output, {"repair.json": result.to_json()})
    return result


class _Scorer:
    """Task loss and refusals at three moments, where there is data for them."""

    def __init__(
        self, model: Any, loaded: LoadedModel, task: Any, samples: int, rows: Any, judged: int, max_length: int
    ) -> None:
        if judged < 0 or samples < 1:
            raise ConfigError(f"{judged} prompts and {samples} samples cannot be scored", place="repair")
        self._model, self._loaded = model, loaded
        self._task = None
        if task is not None:
            self._task = tokenised(task.select(range(min(len(task), samples))), loaded, max_length)
        self._judged = rows.select(range(min(len(rows), judged))) if judged else None
        self.task: dict[str, Estimate] | None = None if task is None else {}
        self.safety: dict[str, Any] | None = {} if judged else None

    def score(self, moment: str) -> None:
        if self._task is not None and self.task is not None:
            losses = completion_losses(self._model, self._task, pad_id=self._loaded.tokenizer.pad_token_id)
            self.task[moment] = mean_estimate(losses)
        if self._judged is not None and self.safety is not None:
            self.safety[moment] = judge_answers(self._model, self._loaded, self._judged, moment)
