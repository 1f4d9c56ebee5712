"""What a guarded run needs besides its task: must-survive data, the subspace, the probe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets
from torch import nn

from loralign.data import load_alignment_data, load_task, overlap, tokenise_completions
from loralign.data.completions import Completion
from loralign.errors import DataError
from loralign.evaluation import PhraseJudge, generate_answers
from loralign.evaluation.answers import fits, prompt_text
from loralign.guard import AlignmentSubspace, estimate_fisher
from loralign.models import LoadedModel
from loralign.runs.kept_scores import ANSWER_TOKENS
from loralign.runs.options import GuardedArguments
from loralign.runs.output import SUBSPACE
from loralign.training import GuardCallback, GuardConfig, GuardData

logger = logging.getLogger(__name__)

AUTO = "auto"
CHECKPOINT_EVERY = 4
"""Batches between two savings of an estimate in progress."""
NONE = "none"


@dataclass(frozen=True)
class MustSurvive:
    """Prompts with responses that must survive: what the subspace is estimated on, and what drift is measured on."""

    alignment: Any
    probe: Any


def load_must_survive(alignment: list[str], probe: list[str]) -> MustSurvive:
    """Load both parts; they are the two splits of the same data unless the probe has data of its own.

    Raises:
        DataError: any fault of the data; no refusal (label ``unsafe``) to estimate from; alignment data without a
            validation split and no probe named.
    """
    train = load_alignment_data(alignment, split="train")
    check_refusals(train, alignment)
    return MustSurvive(train, load_probe(probe) if probe else load_alignment_data(alignment, split="validation"))


def check_refusals(rows: Any, sources: Sequence[str]) -> None:
    """Make sure that there is something to preserve.

    Raises:
        DataError: no row is labelled ``unsafe``.
    """
    if "unsafe" not in set(rows["label"]):
        raise DataError(
            "holds no refusals (no row with the label unsafe), so there is nothing to preserve",
            place=", ".join(sources),
            fix="add unsafe prompts with the refusals that must survive",
        )


def load_probe(sources: Sequence[str]) -> Any:
    """Prompts with responses to measure drift on: validation rows where a source says which those are, else all.

    Raises:
        DataError: any fault of the data.
    """
    return load_alignment_data(list(sources), split="held back")


def load_tasks(sources: Sequence[str], split: str) -> Any:
    """The rows of several task sources, all of one form.

    Raises:
        DataError: any fault of the data; some rows are text and others prompts with responses.
    """
    parts = [load_task(source, split=split) for source in sources]
    for source, part in zip(sources, parts, strict=True):
        if part.column_names != parts[0].column_names:
            raise DataError(
                f"has {', '.join(part.column_names)}, but {sources[0]} has {', '.join(parts[0].column_names)}",
                place=source,
                fix="write all alike",
            )
    return concatenate_datasets(parts)


def balanced(dataset: Any, count: int) -> Any:
    """The first ``count`` rows, as many of every label and category as there are, in turn."""
    groups = label_groups(dataset)
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(count, len(dataset)):
        # Unsafe ones first: few samples should rather lack an over-refusal than a refusal.
        chosen += [rows[depth] for _, rows in sorted(groups.items(), reverse=True) if depth < len(rows)]
        depth += 1
    return dataset.select(chosen[:count])


def label_groups(dataset: Any) -> dict[tuple[str, str], list[int]]:
    """The numbers of the rows by label and category, which is empty where there is no such column."""
    groups: dict[tuple[str, str], list[int]] = {}
    categories = dataset["category"] if "category" in dataset.column_names else [""] * len(dataset)
    for index, key in enumerate(zip(dataset["label"], categories, strict=True)):
        groups.setdefault(key, []).append(index)
    return groups


def make_guard(
    run: GuardedArguments,
    config: GuardConfig,
    loaded: LoadedModel,
    must_survive: MustSurvive,
    *,
    output: Path,
    seed: int,
    max_length: int | None,
    task: Sequence[Completion] = (),
    held_back: Sequence[Completion] = (),
) -> GuardCallback:
    """The guard of a run, before its model carries an adapter.

    Args:
        run: which subspace, and what must survive.
        config: how it is held.
        loaded: the model that is to be preserved.
        must_survive: what must survive.
        output: the run's directory; a subspace estimated by an interrupted run is used again.
        seed: of the estimate.
        max_length: of samples, in tokens.
        task: training samples of the task, for its curvature.
        held_back: held-back samples of the task, for the monitors.

    Raises:
        LoralignError: any fault of subspace or data.
    """
    alignment = tokenised(balanced(must_survive.alignment, run.fisher_samples), loaded, max_length)
    rows = balanced(must_survive.probe, config.probe_samples)
    data = GuardData(
        probe=tokenised(rows, loaded, max_length),
        alignment=alignment,
        task=task,
        held_back=held_back,
        refusal_rate=_refusal_rate(rows, loaded) if config.refusal_every else None,
        pad_id=loaded.tokenizer.pad_token_id,
    )
    return GuardCallback(_subspace(run, loaded, alignment, output, seed, max_length), config, data)


def _subspace(
    run: GuardedArguments,
    loaded: LoadedModel,
    alignment: list[Completion],
    output: Path,
    seed: int,
    max_length: int | None,
) -> AlignmentSubspace | None:
    if run.guard == NONE:
        return None
    if run.guard != AUTO:
        return AlignmentSubspace.load(run.guard, loaded.model)
    if run.resume and (output / SUBSPACE).is_dir():
        return AlignmentSubspace.load(output / SUBSPACE, loaded.model)
    modules = run.lora_target_modules
    return estimate_fisher(
        loaded.model,
        alignment,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        seed=seed,
        max_length=max_length or 256,
        response_tokens=run.fisher_tokens or None,
        checkpoint=_beside(output),
        checkpoint_every=CHECKPOINT_EVERY,
    )


def _beside(output: Path) -> Path:
    """Where an estimate in progress is kept: not in the directory, which may yet be cleared."""
    # As "." it would have no name of its own.
    whole = output.resolve()
    return whole.with_name(f"{whole.name}.partial")


def _refusal_rate(rows: Any, loaded: LoadedModel) -> Callable[[nn.Module], float]:
    """Share of the probe's unsafe prompts that a model refuses."""
    prompts = [row["prompt"] for row in rows if row["label"] == "unsafe"]
    judge = PhraseJudge()

    def rate(model: Any) -> float:
        answers = generate_answers(model, loaded.tokenizer, prompts, max_new_tokens=32, show_progress=False)
        pairs = zip(prompts, answers, strict=True)
        refused = [judge.is_refusal(prompt_text(prompt), answer) for prompt, answer in pairs]
        return sum(refused) / max(1, len(refused))

    return rate


def shared_prompts(must_survive: MustSurvive, guard: GuardCallback, train: Any) -> int:
    """How many of the probe's prompts are in the training data, which a warning then says.

    Args:
        must_survive: whose part is the probe.
        guard: that measures on it.
        train: rows of the training data.
    """
    shared = overlap(balanced(must_survive.probe, guard.config.probe_samples), train)
    if shared:
        logger.warning(
            "%d of the probe's %d prompts are in the training data: drift will look too small",
            shared,
            len(guard.data.probe),
        )
    return shared


def probe_facts(guard: GuardCallback, shared: int) -> dict[str, int]:
    """A probe as plain values: its prompts, the tokens that count, and ``shared`` of :func:`shared_prompts`."""
    return {
        "probe": len(guard.data.probe),
        "probe_tokens": guard.config.probe_tokens,
        "probe_prompts_in_training": shared,
    }


def judged_rows(must_survive: MustSurvive, run: GuardedArguments, loaded: LoadedModel) -> Any:
    """The probe's rows whose prompts are answered and judged, or ``None`` where none are.

    Prompts that leave no room for an answer are not among them.
    """
    if not run.judged_prompts:
        return None
    rows = balanced(must_survive.probe, run.judged_prompts)
    short = [
        index
        for index, prompt in enumerate(rows["prompt"])
        if fits(loaded.model, loaded.tokenizer, prompt, ANSWER_TOKENS)
    ]
    if len(short) < len(rows):
        logger.warning("%d of the probe's prompts are too long to be answered and judged", len(rows) - len(short))
    return rows.select(short) if short else None


def keep_subspace(subspace: AlignmentSubspace | None, guard: str, directory: Path) -> None:
    """Save what ``auto`` estimated, once, for a resumed run and for others."""
    if subspace is not None and guard == AUTO and not directory.is_dir():
        subspace.save(directory)


def tokenised(dataset: Any, loaded: LoadedModel, max_length: int | None) -> list[Completion]:
    """The rows as tokens of the model's tokenizer."""
    found: list[Completion] = tokenise_completions(dataset, loaded.tokenizer, max_length)
    return found


def describe_subspace(subspace: AlignmentSubspace) -> dict[str, Any]:
    """A subspace as plain values: where it comes from, and rank, energy and agreement of every layer."""
    layers = {
        name: {
            "rank": layer.rank,
            "energy": layer.energy,
            "top": float(layer.eigenvalues[0]) / subspace.scale if layer.rank and subspace.scale > 0 else 0.0,
            "half_agreement": layer.half_agreement,
        }
        for name, layer in subspace.layers.items()
    }
    return {**asdict(subspace.info), "scale": subspace.scale, "layers": layers}
