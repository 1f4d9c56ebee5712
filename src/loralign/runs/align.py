"""``loralign align``: train, score, report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PrinterCallback

from loralign.evaluation import (
    PairScores,
    Scores,
    compare_scores,
    generate_samples,
    preference_scores,
    score_pairs,
    tokenise_pairs,
)
from loralign.evaluation.answers import fits
from loralign.evaluation.parquet import write_columns
from loralign.files import write_json, write_text
from loralign.models import portable_base_name
from loralign.report import Run, headline, load_run, render_report
from loralign.runs.card import model_card
from loralign.runs.environment import check_devices, describe_environment
from loralign.runs.guarding import describe_subspace, judged_rows, keep_subspace, probe_facts
from loralign.runs.kept_scores import ANSWER_TOKENS, SAMPLE_SCORES, KeptScores, sample_table, score_kept
from loralign.runs.output import (
    ADAPTER,
    RUN_FILE,
    SUBSPACE,
    check_inputs,
    check_output,
    clear,
    recipe_file,
    save_adapter,
)
from loralign.runs.prepare import Prepared, base_of_run, prepare
from loralign.runs.progress import RunProgress
from loralign.runs.recipe import Recipe
from loralign.runs.resuming import check_same_run, run_to_resume
from loralign.training import last_whole_checkpoint

SCORES = "scores.json"


@dataclass(frozen=True)
class AlignResult:
    """What a run leaves behind.

    Attributes:
        directory: the run's directory.
        adapter: the PEFT adapter inside it.
        report: the HTML page, or ``None`` on a process that writes nothing.
        run: what the page was made from.
        scores: scores after training, where there was validation data.
        kept: drift and refusals, where there was a guard.
    """

    directory: Path
    adapter: Path
    report: Path | None
    run: Run | None
    scores: Scores | None
    kept: KeptScores | None = None


def run_alignment(recipe: Recipe) -> AlignResult:
    """Run a recipe from beginning to end, or from its last whole checkpoint.

    Raises:
        LoralignError: any fault of data, model, settings or output, before anything is written where possible.
    """
    run, directory = recipe.run, Path(recipe.training.output_dir)
    check_output(directory, run)
    check_devices(recipe.training)
    resumed = run.resume and last_whole_checkpoint(directory) is not None
    # Before the first process may change it.
    earlier = run_to_resume(directory, "align", overwrite=run.overwrite) if run.resume else None
    if not resumed:
        base, _ = base_of_run(run.model, run.revision, run.adapter)
        data = (*run.data, *run.validation_data, *run.alignment_data, *run.probe_data)
        texts = recipe.geometry.preservation_prompts
        check_inputs(directory, (recipe_file(recipe.command), base, run.adapter, run.guard, texts, *data))
    PartialState().wait_for_everyone()
    started = time.monotonic()
    prepared = prepare(recipe)
    trainer = prepared.trainer
    description = _description(recipe, prepared, started, "running")
    check_same_run(earlier, description, directory)
    writes = trainer.is_world_process_zero()
    if writes:
        if directory.exists() and not resumed:
            clear(directory)
        # First, since a directory without it is taken for somebody else's.
        write_json(directory / RUN_FILE, description)
        keep_subspace(prepared.subspace, run.guard, directory / SUBSPACE)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunProgress(title=f"aligning, {recipe.geometry.weighting} weights", show=writes))
    trainer.train(resume_from_checkpoint=resumed)
    trainer.accelerator.wait_for_everyone()
    if not writes:
        return AlignResult(directory, directory / ADAPTER, None, None, None)
    # Before anything that may fail or be cut off: a run that says it is finished has its adapter.
    _save_adapter(prepared, directory / ADAPTER)
    scores, kept = _score(recipe, prepared, directory)
    write_json(directory / RUN_FILE, _description(recipe, prepared, started, "finished"))
    finished = load_run(directory)
    write_text(directory / ADAPTER / "README.md", model_card(finished, portable_base_name(prepared.loaded.source.name)))
    report = directory / "report.html"
    render_report(finished, report)
    return AlignResult(directory, directory / ADAPTER, report, finished, scores, kept)


def describe(result: AlignResult) -> str:
    """The run's headline."""
    return headline(result.run) if result.run is not None else ""


def _score(recipe: Recipe, prepared: Prepared, directory: Path) -> tuple[Scores | None, KeptScores | None]:
    model, tokenizer = prepared.trainer.model, prepared.loaded.tokenizer
    model.eval()
    kept = _score_kept(recipe, prepared, directory)
    if prepared.validation is None:
        if kept is not None:
            write_json(directory / SCORES, {"version": 1, **asdict(kept)})
        return None, kept
    reference = "ref" if "ref" in model.peft_config else "base"
    pairs = score_pairs(
        model,
        tokenise_pairs(prepared.validation.dataset, tokenizer, recipe.training.max_length),
        reference=reference,
        batch_tokens=recipe.run.validation_batch_tokens,
    )
    after = write_scores(pairs, directory, beta=recipe.training.beta, kept=kept)
    if recipe.run.samples:
        write_json(directory / "samples.json", _samples(recipe, prepared, model, tokenizer, reference))
    return after, kept


def _score_kept(recipe: Recipe, prepared: Prepared, directory: Path) -> KeptScores | None:
    """Score what the guard held, against the base: a guard begins with an adapter that changes nothing."""
    if prepared.guard is None or prepared.must_survive is None:
        return None
    kept, rows = score_kept(
        prepared.trainer.accelerator.unwrap_model(prepared.trainer.model),
        prepared.loaded,
        list(prepared.guard.data.probe),
        judged_rows(prepared.must_survive, recipe.run, prepared.loaded),
        prepared.subspace,
        recipe.guard.probe_tokens or None,
    )
    write_columns(directory / SAMPLE_SCORES, sample_table(rows))
    return kept


def write_scores(pairs: PairScores, directory: Path, *, beta: float, kept: KeptScores | None = None) -> Scores:
    """Write ``scores.json`` and the per-pair values behind it; returns the scores of the policy."""
    after = preference_scores(pairs, beta=beta)
    before = preference_scores(pairs.of_reference(), beta=beta)
    difference = compare_scores(pairs.of_reference(), pairs, beta=beta)
    write_json(
        directory / SCORES,
        {
            "version": 1,
            "before": before.to_json(),
            "after": after.to_json(),
            "reference": before.to_json(),
            "difference": difference.to_json(),
            **({} if kept is None else asdict(kept)),
        },
    )
    pairs.save(directory / "pair_scores.safetensors")
    return after


def _samples(recipe: Recipe, prepared: Prepared, model: Any, tokenizer: Any, reference: str) -> list[dict[str, str]]:
    rows = prepared.validation.dataset if prepared.validation is not None else prepared.train.dataset
    chosen: list[Any] = []
    objectives = prepared.train.objectives
    for number in range(recipe.run.samples):
        wanted = objectives[number % len(objectives)]
        matching = [row for row in rows if row["objective"] == wanted]
        chosen.append(matching[(number // len(objectives)) % len(matching)])
    chosen = [row for row in chosen if fits(model, tokenizer, row["prompt"], ANSWER_TOKENS)]
    prompts = [row["prompt"] for row in chosen]
    answers = generate_samples(
        model, tokenizer, prompts, reference=reference, max_new_tokens=ANSWER_TOKENS, n=len(prompts)
    )
    return [
        {
            "objective": row["objective"],
            "prompt": answer.prompt,
            "before": answer.without_adapter or "",
            "after": answer.with_adapter,
        }
        for row, answer in zip(chosen, answers, strict=True)
    ]


def _save_adapter(prepared: Prepared, target: Path) -> None:
    model = prepared.trainer.accelerator.unwrap_model(prepared.trainer.model)
    save_adapter(model, prepared.loaded.tokenizer, portable_base_name(prepared.loaded.source.name), target)


def _description(recipe: Recipe, prepared: Prepared, started: float, status: str) -> dict[str, Any]:
    trainer = prepared.trainer
    data: dict[str, Any] = {"train": _data(prepared.train)}
    if prepared.validation is not None:
        data["validation"] = _data(prepared.validation)
    if prepared.guard is not None:
        data |= probe_facts(prepared.guard, prepared.shared)
    if prepared.lengths is not None:
        data["lengths"] = prepared.lengths.as_dict()
    return {
        "version": 1,
        "command": list(recipe.command),
        "model": prepared.loaded.source.name,
        "identity": prepared.identity,
        "objectives": list(trainer.objectives),
        "target_weights": dict(zip(trainer.objectives, trainer.target.tolist(), strict=True)),
        "weighting": recipe.geometry.weighting,
        "config": recipe.settings(),
        "data": data,
        "environment": describe_environment(trainer.model),
        "subspace": None if prepared.subspace is None else describe_subspace(prepared.subspace),
        "seconds": time.monotonic() - started,
        "seed": recipe.training.seed,
        "status": status,
    }


def _data(preferences: Any) -> dict[str, Any]:
    return {
        "counts": dict(preferences.counts),
        "fingerprint": preferences.fingerprint,
        "sources": [str(source) for source in preferences.sources],
    }
