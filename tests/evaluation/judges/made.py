"""Small text classifiers on disk, and language models that judge as they are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from loralign.evaluation.answers import Prompt
from tests.evaluation.models import VOCABULARY, character_tokenizer

LABELS = {0: "Answer", 1: "Refusal", 2: "Other"}
POSITIONS = 200
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "initializer_range": 0.5,
    "id2label": LABELS,
    "label2id": {name: index for index, name in LABELS.items()},
}
_BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": lambda **config: BertForSequenceClassification(BertConfig(**_SIZES | config)),
    "roberta": lambda **config: RobertaForSequenceClassification(RobertaConfig(**_SIZES | config)),
    "llama": lambda **config: LlamaForSequenceClassification(LlamaConfig(**_SIZES | config)),
    "causal": lambda **config: LlamaForCausalLM(LlamaConfig(**_SIZES | config)),
}
ARCHITECTURES = ("bert", "roberta", "llama")


def write_classifier(directory: Path, architecture: str = "bert", **config: Any) -> Path:
    torch.manual_seed(0)
    _BUILDERS[architecture](**config).save_pretrained(directory)
    character_tokenizer(None).save_pretrained(directory)
    return directory


def alone(directory: Path, text: str, architecture: type[PreTrainedModel]) -> torch.Tensor:
    """The logits of one text in a batch of its own, without padding, in float64 softmax's input."""
    model = architecture.from_pretrained(directory).eval()
    ids = character_tokenizer(None)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits[0]
    return logits.double()


class Scripted:
    """A responder that answers the n-th question that it is ever asked by the n-th of its answers, the last for ever.

    Args:
        answers: texts, or errors to be raised instead.
    """

    name = "scripted"

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def respond(self, prompts: Sequence[Prompt], keep: Callable[[int, str], None]) -> None:
        for index, prompt in enumerate(prompts):
            assert isinstance(prompt, list)
            (turn,) = prompt
            assert turn["role"] == "user"
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            self.asked.append(turn["content"])
            keep(index, answer)


class Backwards:
    """A responder that answers from the last question to the first, by the length of the judged response."""

    name = "backwards"

    def respond(self, prompts: Sequence[Prompt], keep: Callable[[int, str], None]) -> None:
        for index in reversed(range(len(prompts))):
            keep(index, by_length(str(prompts[index][0]["content"])))  # type: ignore[index]


def by_length(question: str) -> str:
    """A verdict that differs from response to response."""
    response = question.split("<response>\n")[1].split("\n</response>")[0]
    return json.dumps({"score": round(1 / (1 + len(response)), 6)})


class Fixed:
    """A judge that looks its scores up, and keeps what it was asked."""

    def __init__(self, name: str, scores: dict[str, float]) -> None:
        self.name = name
        self.known = scores
        self.asked: list[str] = []

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        self.asked += responses
        return [self.known[response] for response in responses]
