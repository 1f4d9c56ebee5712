"""``loralign adapt``: fine-tune on a task while the alignment of the start is held."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import concatenate_datasets
from torch import nn
from transformers import PrinterCallback

from loralign.data import load_task, overlap
from loralign.data.completions import Completion
from loralign.errors import DataError
from loralign.evaluation import PhraseJudge, generate_answers, generate_samples
from loralign.evaluation.answers import prompt_text
from loralign.files import write_json, write_text
from loralign.guard import AlignmentSubspace
from loralign.models import LoadedModel, load_start, portable_base_name
from loralign.report import Adaptation, load_adaptation, render_adaptation
from loralign.runs.adapt_card import adapt_card
from loralign.runs.adapt_recipe import AdaptRecipe
from loralign.runs.adapt_scores import AdaptScores, score_adaptation
from loralign.runs.align import clear, save_adapter
from loralign.runs.environment import describe_environment
from loralign.runs.guarding import (
    NONE,
    MustSurvive,
    balanced,
    describe_subspace,
    keep_subspace,
    load_must_survive,
    open_subspace,
    tokenised,
)
from loralign.runs.prepare import RUN_FILE, SUBSPACE, check_output, lora_config
from loralign.runs.progress import RunProgress
from loralign.training import GuardData, GuardedSFTTrainer, last_whole_checkpoint

logger = logging.getLogger(__name__)

ADAPTER = "adapter"
START = "start"


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation leaves behind.

    Attributes:
        directory: the run's directory.
        adapter: the PEFT adapter inside it.
        report: the HTML page, or ``None`` on a process that writes nothing.
        run: what the page was made from.
        scores: task, drift and refusals before and after; ``None`` on a process that writes nothing.
    """

    directory: Path
    adapter: Path
    report: Path | None
    run: Adaptation | None
    scores: AdaptScores | None


@dataclass(frozen=True)
class PreparedAdaptation:
    """Everything that an adaptation trains and scores with."""

    loaded: LoadedModel
    train: Any
    validation: Any
    must_survive: MustSurvive
    probe: list[Completion]
    subspace: AlignmentSubspace | None
    trainer: GuardedSFTTrainer
    shared: int


def run_adaptation(recipe: AdaptRecipe) -> AdaptResult:
    """Run a recipe from beginning to end, or from its last whole checkpoint.

    Raises:
        LoralignError: any fault of data, model, subspace, settings or output, before anything is trained.
    """
    directory = Path(recipe.training.output_dir)
    check_output(directory, recipe.run)
    started = time.monotonic()
    # Faults of the data should not wait for a model to load, nor for anything to be cleared.
    train, validation = _task(recipe)
    must_survive = load_must_survive(recipe.run.alignment_data, recipe.run.probe_data)
    resumed = recipe.run.resume and last_whole_checkpoint(directory) is not None
    if PartialState().is_main_process:
        if directory.exists() and not recipe.run.resume:
            clear(directory)
        write_json(directory / RUN_FILE, {"version": 1, "kind": "adapt", "status": "preparing"})
    PartialState().wait_for_everyone()
    prepared = prepare_adaptation(recipe, train, validation, must_survive)
    trainer = prepared.trainer
    writes = trainer.is_world_process_zero()
    if writes:
        keep_subspace(prepared.subspace, recipe.run.guard, directory / SUBSPACE)
        write_json(directory / RUN_FILE, _description(recipe, prepared, started, "running"))
    trainer.remove_callback(PrinterCallback)
    title = "adapting, plain LoRA" if prepared.subspace is None else "adapting, guarded"
    trainer.add_callback(RunProgress(title=title, show=writes))
    trainer.train(resume_from_checkpoint=resumed)
    trainer.accelerator.wait_for_everyone()
    if not writes:
        return AdaptResult(directory, directory / ADAPTER, None, None, None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    scores = score_adaptation(
        model,
        prepared.loaded,
        tokenised(validation, prepared.loaded, recipe.training.max_length),
        prepared.probe,
        balanced(must_survive.probe, recipe.run.judged_prompts) if recipe.run.judged_prompts else None,
        prepared.subspace,
    )
    write_json(directory / "scores.json", scores.to_json())
    if recipe.run.samples:
        write_json(directory / "samples.json", _samples(recipe, prepared, model))
    write_json(directory / RUN_FILE, _description(recipe, prepared, started, "finished"))
    base = portable_base_name(prepared.loaded.source.name)
    save_adapter(model, prepared.loaded.tokenizer, base, directory / ADAPTER)
    run = load_adaptation(directory)
    write_text(directory / ADAPTER / "README.md", adapt_card(run, base))
    report = directory / "report.html"
    render_adaptation(run, report)
    return AdaptResult(directory, directory / ADAPTER, report, run, scores)


def prepare_adaptation(
    recipe: AdaptRecipe, train: Any, validation: Any, must_survive: MustSurvive
) -> PreparedAdaptation:
    """Load the start and the subspace, and make the trainer.

    Raises:
        LoralignError: any fault of model, subspace or settings.
    """
    run, directory = recipe.run, Path(recipe.training.output_dir)
    with PartialState().main_process_first():
        loaded = load_start(
            run.model,
            merged=directory / START,
            dtype=run.dtype,
            load_in_4bit=run.load_in_4bit,
            revision=run.revision,
        )
    lora = lora_config(run, loaded)
    length = recipe.training.max_length
    alignment = tokenised(balanced(must_survive.alignment, run.fisher_samples), loaded, length)
    probe_rows = balanced(must_survive.probe, recipe.guard.probe_samples)
    probe = tokenised(probe_rows, loaded, length)
    shared = overlap(probe_rows, train)
    if shared:
        logger.warning(
            "%d of the probe's %d prompts are in the training data: drift will look too small", shared, len(probe)
        )
    subspace = open_subspace(
        run.guard,
        loaded,
        alignment,
        target_modules=run.lora_target_modules,
        directory=directory / SUBSPACE,
        reuse=True,
        seed=recipe.training.seed,
        max_length=length,
    )
    curved = recipe.guard.task_curvature != "identity"
    data = GuardData(
        probe=probe,
        alignment=alignment,
        task=tokenised(train.select(range(min(len(train), recipe.guard.curvature_samples))), loaded, length)
        if curved
        else (),
        refusal_rate=_refusal_rate(probe_rows, loaded) if recipe.guard.refusal_every else None,
        pad_id=loaded.tokenizer.pad_token_id,
    )
    trainer = GuardedSFTTrainer(
        model=loaded.model,
        args=recipe.training,
        train_dataset=train,
        eval_dataset=validation if recipe.training.eval_strategy != "no" else None,
        processing_class=loaded.tokenizer,
        peft_config=lora,
        subspace=subspace,
        guard=recipe.guard,
        guard_data=data,
    )
    return PreparedAdaptation(loaded, train, validation, must_survive, probe, subspace, trainer, shared)


def _task(recipe: AdaptRecipe) -> tuple[Any, Any]:
    run = recipe.run
    train = concatenate_datasets([load_task(source, split="train") for source in run.data])
    if run.validation_data:
        validation = concatenate_datasets([load_task(source, split="validation") for source in run.validation_data])
        return train, validation.select(range(min(len(validation), run.validation_samples)))
    if len(train) <= run.validation_samples:
        raise DataError(
            f"holds {len(train)} samples, too few to hold {run.validation_samples} back",
            place=", ".join(run.data),
            fix="lower --validation_samples or name --validation_data",
        )
    parts = train.train_test_split(test_size=run.validation_samples, seed=recipe.training.seed)
    return parts["train"], parts["test"]


def _samples(recipe: AdaptRecipe, prepared: PreparedAdaptation, model: Any) -> list[dict[str, str]]:
    """Answers before and after to prompts of the task and of the probe."""
    pools: dict[str, list[Any]] = {"task": [row["prompt"] for row in prepared.validation if row.get("prompt")]}
    for row in prepared.must_survive.probe:
        pools.setdefault(row["label"], []).append(row["prompt"])
    chosen: list[tuple[str, Any]] = []
    for number in range(max(map(len, pools.values()))):
        chosen += [(name, prompts[number]) for name, prompts in pools.items() if number < len(prompts)]
    chosen = chosen[: recipe.run.samples]
    answers = generate_samples(
        model, prepared.loaded.tokenizer, [prompt for _, prompt in chosen], max_new_tokens=48, n=len(chosen)
    )
    return [
        {
            "objective": name,
            "prompt": answer.prompt,
            "before": answer.without_adapter or "",
            "after": answer.with_adapter,
        }
        for (name, _), answer in zip(chosen, answers, strict=True)
    ]


def _refusal_rate(rows: Any, loaded: LoadedModel) -> Callable[[nn.Module], float]:
    """Share of the probe's unsafe prompts that a model refuses."""
    prompts = [row["prompt"] for row in rows if row["label"] == "unsafe"]
    judge = PhraseJudge()

    def rate(model: nn.Module) -> float:
        answers = generate_answers(model, loaded.tokenizer, prompts, max_new_tokens=32, show_progress=False)
        pairs = zip(prompts, answers, strict=True)
        refused = [judge.is_refusal(prompt_text(prompt), answer) for prompt, answer in pairs]
        return sum(refused) / max(1, len(refused))

    return rate


def _description(recipe: AdaptRecipe, prepared: PreparedAdaptation, started: float, status: str) -> dict[str, Any]:
    subspace = prepared.subspace
    return {
        "version": 1,
        "kind": "adapt",
        "command": list(recipe.command),
        "model": recipe.run.model or prepared.loaded.source.name,
        "guard": NONE if subspace is None else recipe.run.guard,
        "subspace": None if subspace is None else describe_subspace(subspace),
        "config": recipe.settings(),
        "data": {
            "train": len(prepared.train),
            "validation": len(prepared.validation),
            "probe": len(prepared.probe),
            "probe_prompts_in_training": prepared.shared,
        },
        "environment": describe_environment(prepared.trainer.model),
        "seconds": time.monotonic() - started,
        "seed": recipe.training.seed,
        "status": status,
    }
