"""The loss of every response of a batch, and responses drawn from the model itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loralign.capture.sketch import sketch_seed
from loralign.data.completions import Completion, CompletionBatch

# Draws of responses have streams of their own beside those of test matrices.
_RESPONSES = 1


def response_losses(model: Any, batch: CompletionBatch, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood of every row's response, ``(rows,)`` float32 in nats, ready for backward.

    Only the hidden states that predict a response token are handed to the output embedding: with a large vocabulary
    the rest would be a good part of all cost.

    Args:
        model: a causal language model of transformers, with or without PEFT.
        batch: on the model's device; every row has a response token.
        reduction: over a response's tokens, ``"mean"`` or ``"sum"``.
    """
    wanted = batch.labels[:, 1:] != -100
    rows, positions = wanted.nonzero(as_tuple=True)
    head = model.get_output_embeddings()
    # A probe on the output embedding itself must see the samples apart.
    deferred = not isinstance(head, BaseTunerLayer)

    def pick(states: Tensor) -> Tensor:
        return states[rows.to(states.device), positions.to(states.device)]

    with _only(head, lambda states: pick(states)[None] if deferred else states):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    logits = (logits[0] if deferred else pick(logits)).to(batch.labels.device)
    losses = nn.functional.cross_entropy(
        logits if logits.dtype == torch.float64 else logits.float(), batch.labels[:, 1:][wanted], reduction="none"
    )
    totals = losses.new_zeros(len(wanted)).index_add(0, rows, losses)
    return totals / wanted.sum(dim=1) if reduction == "mean" else totals


@torch.no_grad()
def sample_responses(
    model: Any,
    completions: Sequence[Completion],
    indices: Sequence[int],
    *,
    max_length: int,
    max_new_tokens: int,
    pad_id: int,
    seed: int,
    endless: bool = False,
) -> list[Completion]:
    """The same prompts with responses drawn from the model at temperature 1.

    Every sample has a random stream of its own, so its response does not depend on what it shares a batch with, up to
    the rounding of the model's logits.

    Args:
        model: a causal language model in evaluation mode.
        completions: prompts; their responses are dropped.
        indices: numbers of the samples, which together with ``seed`` fix their streams.
        max_length: most tokens of prompt and response together.
        max_new_tokens: most tokens of a response; it ends before that with an end-of-text token.
        pad_id: token id to pad with.
        seed: of all streams.
        endless: go on after an end-of-text token, so that all responses are as long as they may be.
    """
    device = model.get_input_embeddings().weight.device
    prompts = [completion.ids[: completion.prompt_length] for completion in completions]
    streams = [torch.Generator(device).manual_seed(sketch_seed(seed, _RESPONSES, index)) for index in indices]
    limits = [min(max_new_tokens, max_length - len(prompt)) for prompt in prompts]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = set() if endless else _end_tokens(model)
    drawn: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    cache: Any = None
    while open_rows:
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        with _only(model.get_output_embeddings(), lambda states: states[:, -1:]):
            output = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        cache = output.past_key_values
        chances = output.logits[:, -1].to(device).float().softmax(dim=-1)
        ids = torch.full((len(prompts), 1), pad_id, device=device)
        for row in sorted(open_rows):
            token = int(torch.multinomial(chances[row], 1, generator=streams[row]))
            drawn[row].append(token)
            ids[row, 0] = token
            if token in ends or len(drawn[row]) >= limits[row]:
                open_rows.remove(row)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    pairs = zip(completions, prompts, drawn, strict=True)
    return [replace(completion, ids=prompt + response) for completion, prompt, response in pairs]


@contextlib.contextmanager
def _only(head: nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Hand the output embedding only some of the hidden states ``(rows, tokens, d)``."""

    def narrow(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (select(arguments[0]), *arguments[1:])

    hook = head.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        hook.remove()


def _end_tokens(model: Any) -> set[int]:
    for config in (getattr(model, "generation_config", None), model.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return set(ends) if isinstance(ends, list | tuple) else {int(ends)}
    return set()
