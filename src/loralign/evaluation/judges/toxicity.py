"""Scorers of toxicity: judges whose property is that a response is toxic. The prompt plays no part."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from loralign.errors import ConfigError, ModelError
from loralign.evaluation.judges.inputs import judge_spoken

DETOXIFY_MODELS = ("original", "unbiased", "multilingual", "original-small", "unbiased-small")
"""The models that Detoxify knows by name."""

_BATCH = 16
# More than fits into the 512 tokens that Detoxify's models read.
_CHARACTERS = 8192
_SAFE_LOADING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class ProfanityScorer:
    """The probability that a response is profane, by the linear model of alt-profanity-check. English, offline, fast.

    The package keeps its weights as pickled scikit-learn objects and unpickles them when it is imported. That is no
    more than importing it: the file is a part of the installed package, as trusted as its code, and no file that a user
    or a model brings is ever unpickled here.

    Raises:
        ModelError: the package is missing, or does not work with the installed scikit-learn.
    """

    name = "profanity"

    def __init__(self) -> None:
        self._package = _package("profanity_check", "alt-profanity-check")

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The probability that each response is profane, in order; 0.0 for a blank one.

        Raises:
            DataError: there are not as many prompts as responses.
        """
        return judge_spoken(prompts, responses, self._judge)

    def _judge(self, prompts: list[str], responses: list[str]) -> list[float]:
        found = np.asarray(self._package.predict_prob(responses), dtype=np.float64)
        return [float(value) for value in found.clip(0, 1)]


class DetoxifyScorer:
    """The probability that a response is toxic, by one of Detoxify's models, which it fetches on first use.

    Its checkpoints are pickles from the network, so they are loaded as plain tensors and containers only: one that
    holds anything else is refused.

    Args:
        model: which of :data:`DETOXIFY_MODELS`.
        device: where it runs.

    Raises:
        ConfigError: Detoxify has no such model.
        ModelError: the package is missing, or the model cannot be fetched or loaded.
    """

    def __init__(self, model: str = "original", *, device: str = "cpu") -> None:
        if model not in DETOXIFY_MODELS:
            raise ConfigError(
                f"Detoxify has no model {model!r}", place="detoxify", fix=f"use {', '.join(DETOXIFY_MODELS)}"
            )
        package = _package("detoxify", "detoxify")
        self.name = "detoxify" if model == "original" else f"detoxify:{model}"
        try:
            with _plain_weights_only():
                self._model = package.Detoxify(model, device=device)
        except Exception as error:
            # A connection, a disk, a damaged checkpoint or another transformers: as many classes as causes.
            raise ModelError(
                f"cannot be loaded: {_first_line(error)}",
                place=self.name,
                fix="check the connection, or name a classifier instead: classifier:DIR:LABEL",
            ) from error

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The probability that each response is toxic, in order; 0.0 for a blank one.

        Raises:
            DataError: there are not as many prompts as responses.
        """
        return judge_spoken(prompts, responses, self._judge)

    def _judge(self, prompts: list[str], responses: list[str]) -> list[float]:
        scores = [0.0] * len(responses)
        order = sorted(range(len(responses)), key=lambda row: -len(responses[row]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            found = self._model.predict([responses[row][:_CHARACTERS] for row in rows])["toxicity"]
            for row, score in zip(rows, found, strict=True):
                scores[row] = float(score)
        return scores


def _package(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the package {distribution} is needed and not installed",
            place=module,
            fix=f"pip install {distribution}",
        ) from error
    except Exception as error:
        # Unpickling under another version of scikit-learn may fail in any way.
        raise ModelError(
            f"the package {distribution} does not work here: {_first_line(error)}",
            place=module,
            fix=f"pip install --upgrade {distribution}",
        ) from error


@contextlib.contextmanager
def _plain_weights_only() -> Iterator[None]:
    before = os.environ.get(_SAFE_LOADING)
    os.environ[_SAFE_LOADING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_LOADING]
        else:
            os.environ[_SAFE_LOADING] = before


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
