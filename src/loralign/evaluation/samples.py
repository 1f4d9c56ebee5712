"""A few answers with and without the adapter, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from loralign.evaluation.batching import pad_sequences, padded_length
from loralign.evaluation.tokenising import prompt_ids
from loralign.evaluation.views import adapter_view, evaluating


@dataclass(frozen=True)
class SampleAnswer:
    """One prompt and what the model says to it.

    Args:
        prompt: the prompt as text; the turns of a conversation are separated by empty lines.
        with_adapter: the answer of the model as it is.
        without_adapter: the answer with the adapter switched off; None for a model without an adapter.
    """

    prompt: str
    with_adapter: str
    without_adapter: str | None


def generate_samples(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict[str, Any]]],
    *,
    max_new_tokens: int = 64,
    n: int = 3,
) -> list[SampleAnswer]:
    """Greedy answers to the first ``n`` prompts, all in one batch padded on the left.

    The text is model output: whoever shows it in HTML must escape it.

    Args:
        model: with a PEFT adapter or without; left as it was found.
        tokenizer: of the model.
        prompts: plain texts or conversations that end with the user's turn.
        max_new_tokens: longest answer.
        n: most prompts to answer.

    Raises:
        ModelError: a prompt is a conversation and the tokenizer has no chat template.
    """
    prompts = list(prompts)[:n]
    if not prompts:
        return []
    sequences = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids, mask = pad_sequences(sequences, padded_length(max(map(len, sequences))), side="left", pad_id=pad)
    device = model.get_input_embeddings().weight.device
    end = getattr(model.generation_config, "eos_token_id", None)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
    )

    def answers() -> list[str]:
        tokens: torch.Tensor = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
        )
        texts = tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    without: list[str] | list[None] = [None] * len(prompts)
    with evaluating(model):
        adapted = answers()
        if isinstance(model, PeftModel):
            with adapter_view(model, "base"):
                without = answers()
    return [SampleAnswer(_text(p), a, b) for p, a, b in zip(prompts, adapted, without, strict=True)]


def _text(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(str(turn["content"]) for turn in prompt)
