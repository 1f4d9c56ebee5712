"""Answers of a model to many prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from loralign.data.batching import pad_sequences, padded_length
from loralign.errors import ConfigError, DataError
from loralign.evaluation.tokenising import prompt_ids
from loralign.guard.modes import evaluating

Prompt = str | list[dict[str, Any]]
"""A plain text, which the model continues as it stands, or a conversation that ends with the user's turn."""


def generate_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    batch_tokens: int = 4096,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    show_progress: bool = True,
    description: str = "answering",
    on_answers: Callable[[Sequence[int], Sequence[str]], None] | None = None,
) -> list[str]:
    """The model's answers, in the order of the prompts, without the white space around them.

    Prompts of similar length are answered together, the longest first, padded on the left to a few fixed lengths.
    Greedy answers are those that each prompt gets alone, up to ties that the rounding of another batch decides: in
    float32 hardly ever, in bfloat16 now and then. Only the settings given here count, not those that come with the
    model. The text is model output: whoever shows it in HTML must escape it.

    Args:
        model: with a PEFT adapter or without; left as it was found.
        tokenizer: of the model.
        prompts: a chat model is asked by conversations; a plain text does not go through its template.
        max_new_tokens: longest answer.
        batch_tokens: most tokens of one batch, padding and answers included; a single longer prompt is a batch of its
            own.
        temperature: of sampling; ``None`` takes the most probable token.
        top_p: share of the probability that is sampled from.
        seed: of sampling, whose draws also depend on ``batch_tokens``. The global generators are left alone.
        show_progress: show a progress bar.
        description: what the progress bar says.
        on_answers: called after every batch with the indices of its prompts and their answers, so that they can be
            kept before the last one is there.

    Raises:
        ConfigError: a limit, the temperature or ``top_p`` is out of range.
        DataError: a prompt has no token, or with the answer more than the model has positions for.
        ModelError: a prompt is a conversation and the tokenizer has no chat template.
    """
    _check_settings(max_new_tokens, batch_tokens, temperature, top_p)
    sequences = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    limit = getattr(model.config, "max_position_embeddings", None)
    room = None if limit is None else limit - max_new_tokens
    _check_lengths(sequences, max_new_tokens, room)
    config = _generation_config(model, tokenizer, max_new_tokens, temperature, top_p)
    device = model.get_input_embeddings().weight.device
    answers = [""] * len(sequences)
    with (
        evaluating(model),
        _seeded(None if temperature is None else seed, device),
        tqdm(total=len(sequences), desc=description, unit="answer", disable=not show_progress) as bar,
    ):
        for members, length in _plan(sequences, max_new_tokens, batch_tokens, room):
            chosen = [sequences[index] for index in members]
            ids, mask = pad_sequences(chosen, length, side="left", pad_id=int(config.pad_token_id))
            tokens: torch.Tensor = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
            decoded = tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
            texts = [text.strip() for text in decoded]
            for index, text in zip(members, texts, strict=True):
                answers[index] = text
            if on_answers is not None:
                on_answers(members, texts)
            bar.update(len(members))
    return answers


def fits(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_new_tokens: int
) -> bool:
    """Whether a prompt and an answer of that length have room in the model's positions.

    Raises:
        ModelError: the prompt is a conversation and the tokenizer has no chat template.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit is None or len(prompt_ids(prompt, tokenizer)) + max_new_tokens <= limit


def prompt_text(prompt: Prompt) -> str:
    """A prompt as text; the turns of a conversation are separated by empty lines."""
    return prompt if isinstance(prompt, str) else "\n\n".join(str(turn["content"]) for turn in prompt)


def _plan(
    sequences: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int, room: int | None
) -> Iterator[tuple[list[int], int]]:
    """Indices of the prompts of a batch and the length to pad them to, the longest first."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    start = 0
    while start < len(order):
        length = padded_length(len(sequences[order[start]]), room)
        count = max(1, batch_tokens // (length + max_new_tokens))
        yield order[start : start + count], length
        start += count


def _generation_config(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float,
) -> Any:
    end = getattr(model.generation_config, "eos_token_id", None)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # What is not set here would be taken from the model's own generation settings.
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        num_beams=1,
        do_sample=temperature is not None,
        temperature=1.0 if temperature is None else temperature,
        top_p=top_p,
        # 50 is what greedy search expects to be left alone; sampling is from the whole vocabulary.
        top_k=50 if temperature is None else 0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad or 0,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
    )


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Let the global generators, which sampling draws from, start from ``seed``, and put them back afterwards."""
    if seed is None:
        yield
        return
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(range(torch.get_device_module(kind).device_count()), device_type=kind):
        torch.manual_seed(seed)
        yield


def _check_settings(max_new_tokens: int, batch_tokens: int, temperature: float | None, top_p: float) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise ConfigError(f"{name} is {value}", place=name, fix="give a positive number")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(
            f"temperature is {temperature}", place="temperature", fix="give a positive number, or none for greedy"
        )
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}", place="top_p", fix="give a share above 0 and at most 1")


def _check_lengths(sequences: Sequence[Sequence[int]], max_new_tokens: int, room: int | None) -> None:
    for index, sequence in enumerate(sequences):
        if not sequence:
            raise DataError("the prompt has no token", place=f"prompt {index}", fix="drop it")
        if room is not None and len(sequence) > room:
            raise DataError(
                f"{len(sequence)} tokens and an answer of {max_new_tokens} do not fit into the model's "
                f"{room + max_new_tokens} positions",
                place=f"prompt {index}",
                fix="shorten the prompt or lower max_new_tokens",
            )
