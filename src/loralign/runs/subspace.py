"""``loralign fisher``: estimate the subspace that carries a model's alignment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from loralign.data import load_alignment_data, load_alignment_prompts
from loralign.errors import ConfigError, DataError, OutputError
from loralign.evaluation import PhraseJudge, generate_answers
from loralign.evaluation.answers import prompt_text
from loralign.guard import AlignmentSubspace, estimate_fisher
from loralign.guard.fisher_options import OPENING, FisherOptions
from loralign.models import LoadedModel, load_start
from loralign.models.dtype import DtypeName
from loralign.runs.drawing import Draw, draw_samples
from loralign.runs.environment import onto_device
from loralign.runs.guarding import CHECKPOINT_EVERY, check_refusals, tokenised


def estimate_subspace(
    model: str | None,
    output: Path,
    *,
    data: Sequence[str] = ("builtin",),
    samples: int = 96,
    draw: Draw = "first",
    target_modules: Sequence[str] = ("all-linear",),
    max_length: int = 256,
    response_tokens: int = OPENING,
    generate: bool = False,
    dtype: DtypeName = "auto",
    load_in_4bit: bool = False,
    revision: str | None = None,
    seed: int = 0,
    **options: Any,
) -> AlignmentSubspace:
    """Estimate a model's alignment subspace and write it; a run that was interrupted goes on where it stopped.

    Args:
        model: a model, or an alignment adapter, which is merged into its base.
        output: the subspace's directory; must not exist.
        data: prompts with the responses that must survive; with ``generate``, prompts alone are enough.
        samples: of the data, spread over labels and categories.
        draw: which of them.
        target_modules: layers, as for LoRA.
        max_length: of a sample, in tokens.
        response_tokens: first tokens of a response that count; 0 is all of them.
        generate: let the model write the responses itself, and keep those that are as they should be: refusals of
            unsafe prompts, answers to safe ones.
        dtype: of the base weights.
        load_in_4bit: quantise the base.
        revision: of a hub model.
        seed: of what is drawn at random, and of halves and sketches.
        **options: of :func:`loralign.guard.estimate_fisher`.

    Raises:
        LoralignError: any fault of model, data, options or output.
    """
    if output.exists():
        raise OutputError("exists", place=str(output), fix="choose another place with --output")
    rows = load_alignment_prompts(list(data)) if generate else load_alignment_data(list(data), split="train")
    check_refusals(rows, data)
    rows = draw_samples(rows, samples, draw, seed)
    if response_tokens < 0:
        raise ConfigError(f"{response_tokens} is negative", place="--response-tokens", fix="use 0 for whole responses")
    options["response_tokens"] = response_tokens or None
    FisherOptions(max_length=max_length, seed=seed, **options)
    loaded = onto_device(load_start(model, dtype=dtype, load_in_4bit=load_in_4bit, revision=revision))
    if generate:
        rows = own_responses(loaded, rows)
    modules = list(target_modules)
    subspace = estimate_fisher(
        loaded.model,
        tokenised(rows, loaded, max_length),
        tokenizer=loaded.tokenizer,
        max_length=max_length,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        checkpoint=output.with_name(f"{output.name}.partial"),
        checkpoint_every=CHECKPOINT_EVERY,
        seed=seed,
        **options,
    )
    subspace.save(output)
    return subspace


def own_responses(loaded: LoadedModel, rows: Any, *, max_new_tokens: int = 64) -> Any:
    """The model's own greedy answers to prompts, those kept that are as they should be.

    Args:
        loaded: model and tokenizer.
        rows: with ``prompt``, ``label`` (``unsafe`` or ``safe``) and ``category``.
        max_new_tokens: longest answer.

    Returns:
        The rows kept, with a ``completion``.

    Raises:
        DataError: the model refuses none of the unsafe prompts.
    """
    prompts = list(rows["prompt"])
    answers = generate_answers(loaded.model, loaded.tokenizer, prompts, max_new_tokens=max_new_tokens)
    judge = PhraseJudge()
    kept = []
    for row, answer in zip(rows, answers, strict=True):
        if answer.strip() and judge.is_refusal(prompt_text(row["prompt"]), answer) == (row["label"] == "unsafe"):
            response = answer if isinstance(row["prompt"], str) else [{"role": "assistant", "content": answer}]
            kept.append({**row, "completion": response})
    if not any(row["label"] == "unsafe" for row in kept):
        unsafe = sum(label == "unsafe" for label in rows["label"])
        raise DataError(
            f"the model refused none of {unsafe} unsafe prompts, so it has no refusals to preserve",
            place="--generate",
            fix="align the model first, or give responses",
        )
    return Dataset.from_list(kept)
