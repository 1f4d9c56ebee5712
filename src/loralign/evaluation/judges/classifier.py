"""Text classifiers as judges: a model with a label that means the property."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from loralign.data.batching import pad_sequences, padded_length
from loralign.errors import ConfigError, ModelError
from loralign.evaluation.judges.classifier_loading import Classifier, load_classifier, window
from loralign.evaluation.judges.inputs import judge_spoken
from loralign.models.dtype import DtypeName

RESPONSE = "{response}"
"""The template for classifiers that were trained on responses alone, as most for refusals and toxicity were."""
PROMPT_AND_RESPONSE = "{prompt}\n\n{response}"
"""A template for classifiers that were trained on both."""

# Tokens are seldom longer; what is cut off here could not reach the model.
_CHARACTERS_PER_TOKEN = 16


class ClassifierJudge:
    """Asks a Hugging Face text-classification model for the probability of one of its labels.

    The probability is the softmax over the labels, or the sigmoid of the label's own logit where the model was trained
    on several labels at once or has only one. Long inputs lose their end; the prompt fills at most half of the model's
    window, so that it cannot push the response out. Special tokens that are spelled out in a text are read as ordinary
    text. A blank response has probability 0.

    Args:
        model: local directory or hub name ``owner/model``, with safetensors weights.
        labels: of the model, those that mean the property, whatever their case. Of several, probabilities that exclude
            each other are added; of independent ones the highest counts.
        template: the model's input, with ``{response}`` and, if it was trained so, ``{prompt}``.
        batch_size: responses judged at once.
        max_length: most tokens of one input; by default what the model reads, but at most 512.
        device: where the model runs; the GPU if there is one, else the CPU.
        dtype: of the weights.
        revision: of a hub model.
        show_progress: show a progress bar.

    Raises:
        ModelError: the model cannot be used, see :func:`~loralign.evaluation.judges.classifier_loading.load_classifier`
            .
        ConfigError: a label is unknown, the template lacks the response, a number is out of range, or the model gives
            a quantity and no probability.
    """

    def __init__(
        self,
        model: str | Path,
        labels: str | Sequence[str],
        *,
        template: str = RESPONSE,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | None = None,
        dtype: DtypeName = "float32",
        revision: str | None = None,
        show_progress: bool = True,
    ) -> None:
        if "{response}" not in template:
            raise ConfigError(
                f"the template {template!r} does not show the response", place="template", fix="write {response} in it"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", place="batch_size", fix="give a positive number")
        self._classifier = load_classifier(str(model), dtype=dtype, revision=revision, device=device)
        self._columns = _columns(self._classifier, [labels] if isinstance(labels, str) else labels, str(model))
        self._max_length = window(self._classifier, max_length)
        self._template, self._batch_size, self._show_progress = template, batch_size, show_progress
        chosen = ",".join(self._classifier.labels[column] for column in self._columns)
        self.name = f"classifier:{model}:{chosen}"

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The probability of the labels for every response, in order.

        Raises:
            DataError: there are not as many prompts as responses.
            ModelError: the model gives no number.
        """
        return judge_spoken(prompts, responses, self._judge)

    def _judge(self, prompts: list[str], responses: list[str]) -> list[float]:
        shown = self._max_length * _CHARACTERS_PER_TOKEN
        asked = self._beginnings([prompt[:shown] for prompt in prompts]) if "{prompt}" in self._template else prompts
        texts = [
            fill(self._template, prompt, response[:shown]) for prompt, response in zip(asked, responses, strict=True)
        ]
        tokens = self._classifier.tokenizer(
            texts, truncation=True, max_length=self._max_length, split_special_tokens=True
        )["input_ids"]
        scores = [0.0] * len(texts)
        # A tokenizer that adds nothing may leave nothing: a text that the model cannot read has no property.
        order = sorted((row for row in range(len(texts)) if tokens[row]), key=lambda row: -len(tokens[row]))
        with tqdm(total=len(order), desc="judging", unit="response", disable=not self._show_progress) as bar:
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                for row, score in zip(rows, self._probabilities([tokens[row] for row in rows]), strict=True):
                    scores[row] = score
                bar.update(len(rows))
        return scores

    def _beginnings(self, prompts: list[str]) -> list[str]:
        """As much of each prompt as half of the window holds."""
        half = max(1, self._max_length // 2)
        tokenizer = self._classifier.tokenizer
        if not tokenizer.is_fast:
            # Without the tokens' places in the text: characters, of which a token holds one or more.
            return [prompt[:half] for prompt in prompts]
        places = tokenizer(
            prompts,
            truncation=True,
            max_length=half,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]
        return [
            prompt[: max((end for _, end in each), default=0)] for prompt, each in zip(prompts, places, strict=True)
        ]

    @torch.no_grad()
    def _probabilities(self, sequences: list[list[int]]) -> list[float]:
        model = self._classifier.model
        length = padded_length(max(map(len, sequences)), self._max_length)
        ids, mask = pad_sequences(sequences, length, pad_id=self._classifier.pad_id)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.double().cpu()
        if not torch.isfinite(logits).all():
            raise ModelError("the model gives no number", place=self.name, fix="use another dtype or model")
        if _independent(self._classifier):
            found = logits.sigmoid()[:, self._columns].amax(1)
        else:
            found = logits.softmax(1)[:, self._columns].sum(1).clamp(max=1)
        return [float(value) for value in found]


def fill(template: str, prompt: str, response: str) -> str:
    """The template with prompt and response in their places; a place that is spelled out in either is left as it is."""
    parts = {"{prompt}": prompt, "{response}": response}
    return re.sub(r"\{prompt\}|\{response\}", lambda place: parts[place[0]], template)


def _columns(classifier: Classifier, labels: Iterable[str], model: str) -> list[int]:
    config = classifier.model.config
    if config.problem_type == "regression":
        raise ConfigError("the model gives a quantity, no probability", place=f"judge {model}", fix="use a classifier")
    wanted = list(dict.fromkeys(labels))
    known = {name.casefold(): column for column, name in enumerate(classifier.labels)}
    unknown = [label for label in wanted if label.casefold() not in known]
    if unknown or not wanted:
        raise ConfigError(
            f"the model has no label {', '.join(map(repr, unknown))}" if unknown else "no label is named",
            place=f"judge {model}",
            fix=f"it has {', '.join(classifier.labels)}",
        )
    return list(dict.fromkeys(known[label.casefold()] for label in wanted))


def _independent(classifier: Classifier) -> bool:
    return classifier.model.config.problem_type == "multi_label_classification" or len(classifier.labels) == 1
