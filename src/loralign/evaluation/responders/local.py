"""Answers of a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loralign.evaluation.answers import Prompt, generate_answers
from loralign.evaluation.model_identity import model_identity
from loralign.evaluation.responders.protocol import Keep


class LocalResponder:
    """Lets a loaded model answer in batches of similar length, see :func:`~loralign.evaluation.generate_answers`.

    The answers of a batch are handed out together. Sampled ones depend on how the prompts fall into batches, so a run
    that was interrupted and goes on samples others than one that was not; greedy ones are the same, up to ties.

    Args:
        model: with a PEFT adapter or without; left as it was found.
        tokenizer: of the model.
        name: what reports call the model; by default what it was loaded from.
        max_new_tokens: longest answer.
        batch_tokens: most tokens of one batch, padding and answers included.
        temperature: of sampling; ``None`` takes the most probable token.
        top_p: share of the probability that is sampled from.
        seed: of sampling.
        show_progress: show a progress bar with the rate.
        description: what the progress bar says.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        max_new_tokens: int = 64,
        batch_tokens: int = 4096,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        show_progress: bool = True,
        description: str = "answering",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.generation: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        self.batch_tokens = batch_tokens
        self.show_progress = show_progress
        self.description = description
        self._name = name

    @property
    def name(self) -> str:
        """What reports call the model."""
        return self._name or str(model_identity(self.model)["name"])

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on: the model as it is now, and how it generates."""
        return {"engine": "local", "model": model_identity(self.model), **self.generation}

    def respond(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """Answer every prompt, the longest first.

        Raises:
            ConfigError: a limit, the temperature or ``top_p`` is out of range.
            DataError: a prompt has no token, or with the answer more than the model has positions for; nothing is
                answered then.
            ModelError: a prompt is a conversation and the tokenizer has no chat template.
        """

        def keep_batch(indices: Sequence[int], answers: Sequence[str]) -> None:
            for index, answer in zip(indices, answers, strict=True):
                keep(index, answer)

        generate_answers(
            self.model,
            self.tokenizer,
            prompts,
            **self.generation,
            batch_tokens=self.batch_tokens,
            show_progress=self.show_progress,
            description=self.description,
            on_answers=keep_batch,
        )
