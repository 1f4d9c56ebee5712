"""``loralign adapt``: fine-tune on a task while the alignment of the start is held."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PrinterCallback

from loralign.data.completions import Completion
from loralign.data.preferences import fingerprint_rows
from loralign.errors import DataError
from loralign.evaluation import generate_samples
from loralign.evaluation.answers import fits
from loralign.evaluation.parquet import write_columns
from loralign.files import write_json, write_text
from loralign.models import LoadedModel, keep_start, load_start
from loralign.report import Adaptation, load_adaptation, render_adaptation
from loralign.runs.adapt_card import adapt_card
from loralign.runs.adapt_recipe import AdaptRecipe
from loralign.runs.adapt_scores import AdaptScores, score_adaptation
from loralign.runs.environment import check_devices, describe_environment, onto_device
from loralign.runs.guarding import (
    NONE,
    MustSurvive,
    describe_subspace,
    judged_rows,
    keep_subspace,
    load_must_survive,
    load_tasks,
    make_guard,
    probe_facts,
    shared_prompts,
    tokenised,
)
from loralign.runs.kept_scores import ANSWER_TOKENS, SAMPLE_SCORES
from loralign.runs.output import (
    ADAPTER,
    RUN_FILE,
    START,
    SUBSPACE,
    check_inputs,
    check_output,
    clear,
    recipe_file,
    save_adapter,
)
from loralign.runs.prepare import factors_in_float32, lora_config
from loralign.runs.progress import RunProgress
from loralign.runs.resuming import check_same_run, run_identity, run_to_resume
from loralign.training import GuardCallback, GuardedSFTTrainer, last_whole_checkpoint

MONITORED = 16
"""Held-back samples whose loss is watched while training."""


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
    held_back: list[Completion]
    must_survive: MustSurvive
    guard: GuardCallback
    trainer: GuardedSFTTrainer
    shared: int
    identity: dict[str, Any]


def run_adaptation(recipe: AdaptRecipe) -> AdaptResult:
    """Run a recipe from beginning to end, or from its last whole checkpoint.

    Raises:
        LoralignError: any fault of data, model, subspace, settings or output, before anything is cleared or trained.
    """
    run, directory = recipe.run, Path(recipe.training.output_dir)
    check_output(directory, run)
    check_devices(recipe.training)
    resumed = run.resume and last_whole_checkpoint(directory) is not None
    # A run cut off before its first checkpoint keeps the subspace that it estimated.
    keeps = resumed or (run.resume and not run.overwrite)
    # Before the first process may change it.
    earlier = run_to_resume(directory, "adapt", overwrite=run.overwrite) if run.resume else None
    if not keeps:
        data = (*run.data, *run.validation_data, *run.alignment_data, *run.probe_data)
        check_inputs(directory, (recipe_file(recipe.command), run.model, run.guard, *data))
    PartialState().wait_for_everyone()
    started = time.monotonic()
    prepared = prepare_adaptation(recipe)
    trainer, subspace = prepared.trainer, prepared.guard.subspace
    description = _description(recipe, prepared, started, "running")
    check_same_run(earlier, description, directory)
    writes = trainer.is_world_process_zero()
    if writes:
        if directory.exists() and not keeps:
            clear(directory)
        write_json(directory / RUN_FILE, description)
        keep_subspace(subspace, run.guard, directory / SUBSPACE)
    trainer.accelerator.wait_for_everyone()
    trainer.remove_callback(PrinterCallback)
    title = "adapting, plain LoRA" if subspace is None else "adapting, guarded"
    trainer.add_callback(RunProgress(title=title, show=writes))
    trainer.train(resume_from_checkpoint=resumed)
    trainer.accelerator.wait_for_everyone()
    if not writes:
        return AdaptResult(directory, directory / ADAPTER, None, None, None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = keep_start(prepared.loaded, directory / START)
    save_adapter(model, prepared.loaded.tokenizer, base, directory / ADAPTER)
    judged = judged_rows(prepared.must_survive, run, prepared.loaded)
    probe = list(prepared.guard.data.probe)
    tokens = recipe.guard.probe_tokens or None
    scores = score_adaptation(model, prepared.loaded, prepared.held_back, probe, judged, subspace, tokens)
    write_json(directory / "scores.json", scores.to_json())
    write_columns(directory / SAMPLE_SCORES, scores.samples)
    if run.samples:
        write_json(directory / "samples.json", _samples(recipe, prepared, model))
    write_json(directory / RUN_FILE, _description(recipe, prepared, started, "finished"))
    finished = load_adaptation(directory)
    write_text(directory / ADAPTER / "README.md", adapt_card(finished, base))
    report = directory / "report.html"
    render_adaptation(finished, report)
    return AdaptResult(directory, directory / ADAPTER, report, finished, scores)


def prepare_adaptation(recipe: AdaptRecipe) -> PreparedAdaptation:
    """Load and check everything, data first: a fault there should not wait for a model to load.

    Raises:
        LoralignError: any fault of data, model, subspace or settings.
    """
    run, length = recipe.run, recipe.training.max_length
    train, validation = load_task_split(recipe)
    must_survive = load_must_survive(run.alignment_data, run.probe_data)
    with PartialState().main_process_first():
        loaded = load_start(run.model, dtype=run.dtype, load_in_4bit=run.load_in_4bit, revision=run.revision)
    identity = run_identity(loaded, fingerprint_rows(train.to_list()))
    lora = lora_config(run, loaded)
    held_back = tokenised(validation, loaded, length)
    samples = train.select(range(min(len(train), recipe.guard.curvature_samples)))
    curved = recipe.guard.task_curvature != "identity" and run.guard != NONE
    onto_device(loaded)
    guard = make_guard(
        run,
        recipe.guard,
        loaded,
        must_survive,
        output=Path(recipe.training.output_dir),
        seed=recipe.training.seed,
        max_length=length,
        task=tokenised(samples, loaded, length) if curved else (),
        held_back=held_back[:MONITORED],
    )
    shared = shared_prompts(must_survive, guard, train)
    trainer = GuardedSFTTrainer(
        model=loaded.model,
        args=recipe.training,
        train_dataset=train,
        eval_dataset=validation if recipe.training.eval_strategy != "no" else None,
        processing_class=loaded.tokenizer,
        peft_config=lora,
        subspace=guard.subspace,
        guard=recipe.guard,
        guard_data=guard.data,
    )
    factors_in_float32(trainer.model)
    if trainer.guard_callback is not None:
        trainer.guard_callback.check(trainer.model)
    return PreparedAdaptation(loaded, train, validation, held_back, must_survive, guard, trainer, shared, identity)


def load_task_split(recipe: AdaptRecipe) -> tuple[Any, Any]:
    """Training and validation samples of the task.

    Without validation data of its own the task is split at random, by a seed that is not the training's: runs that
    differ in that one alone are trained and scored on the same samples.

    Raises:
        DataError: any fault of the data; too few samples to hold any back.
    """
    run = recipe.run
    train = load_tasks(run.data, "train")
    if run.validation_data:
        validation = load_tasks(run.validation_data, "validation")
        return train, validation.select(range(min(len(validation), run.validation_samples)))
    if len(train) <= run.validation_samples:
        raise DataError(
            f"holds {len(train)} samples, too few to hold {run.validation_samples} back",
            place=", ".join(run.data),
            fix="lower --validation_samples or name --validation_data",
        )
    parts = train.train_test_split(test_size=run.validation_samples, seed=run.split_seed)
    return parts["train"], parts["test"]


def _samples(recipe: AdaptRecipe, prepared: PreparedAdaptation, model: Any) -> list[dict[str, str]]:
    """Answers before and after to prompts of the task and of the probe."""
    pools: dict[str, list[Any]] = {"task": [row["prompt"] for row in prepared.validation if row.get("prompt")]}
    for row in prepared.must_survive.probe:
        pools.setdefault(row["label"], []).append(row["prompt"])
    chosen: list[tuple[str, Any]] = []
    for number in range(max(map(len, pools.values()))):
        chosen += [(name, prompts[number]) for name, prompts in pools.items() if number < len(prompts)]
    tokenizer = prepared.loaded.tokenizer
    chosen = [one for one in chosen[: recipe.run.samples] if fits(model, tokenizer, one[1], ANSWER_TOKENS)]
    answers = generate_samples(
        model, tokenizer, [prompt for _, prompt in chosen], max_new_tokens=ANSWER_TOKENS, n=len(chosen)
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


def _description(recipe: AdaptRecipe, prepared: PreparedAdaptation, started: float, status: str) -> dict[str, Any]:
    subspace = prepared.guard.subspace
    return {
        "version": 1,
        "kind": "adapt",
        "command": list(recipe.command),
        "model": recipe.run.model or prepared.loaded.source.name,
        "identity": prepared.identity,
        "guard": NONE if subspace is None else recipe.run.guard,
        "subspace": None if subspace is None else describe_subspace(subspace),
        "config": recipe.settings(),
        "data": {
            "train": len(prepared.train),
            "validation": len(prepared.validation),
            **probe_facts(prepared.guard, prepared.shared),
        },
        "environment": describe_environment(prepared.trainer.model),
        "steps": prepared.trainer.state.global_step,
        "seconds": time.monotonic() - started,
        "seed": recipe.training.seed,
        "status": status,
    }
