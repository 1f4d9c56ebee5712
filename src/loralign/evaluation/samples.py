"""A few answers with and without the adapter, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loralign.evaluation.answers import Prompt, generate_answers, prompt_text
from loralign.evaluation.views import adapter_view


@dataclass(frozen=True)
class SampleAnswer:
    """One prompt and what the model says to it.

    Args:
        prompt: the prompt as text; the turns of a conversation are separated by empty lines.
        with_adapter: the answer of the model as it is.
        without_adapter: the answer with the adapter switched off, or with that of the reference in its place; None for
            a model without an adapter.
    """

    prompt: str
    with_adapter: str
    without_adapter: str | None


def generate_samples(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    reference: str = "base",
    max_new_tokens: int = 64,
    n: int = 3,
) -> list[SampleAnswer]:
    """Greedy answers to the first ``n`` prompts.

    The text is model output: whoever shows it in HTML must escape it.

    Args:
        model: with a PEFT adapter or without; left as it was found.
        tokenizer: of the model.
        prompts: plain texts or conversations that end with the user's turn.
        reference: adapter to answer with instead, ``"base"`` for none; of a model that has adapters.
        max_new_tokens: longest answer.
        n: most prompts to answer.

    Raises:
        DataError: a prompt has no token or is too long.
        ModelError: a prompt is a conversation and the tokenizer has no chat template.
    """
    prompts = list(prompts)[:n]

    def answers() -> list[str]:
        return generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, show_progress=False)

    adapted = answers()
    without: list[str] | list[None] = [None] * len(prompts)
    if isinstance(model, PeftModel):
        with adapter_view(model, reference):
            without = answers()
    return [SampleAnswer(prompt_text(p), a, b) for p, a, b in zip(prompts, adapted, without, strict=True)]
