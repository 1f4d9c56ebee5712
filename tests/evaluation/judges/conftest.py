from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.evaluation.judges.made import ARCHITECTURES, write_classifier


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of small classifiers by architecture; not to be changed by a test."""
    home = tmp_path_factory.mktemp("classifiers")
    return {name: write_classifier(home / name, name) for name in ARCHITECTURES}


class FakeDetoxify:
    """The face of the package's class: a table of lists, one for each kind of toxicity."""

    made: list[FakeDetoxify] = []  # noqa: RUF012 - looked at by the tests

    def __init__(self, model_type: str, device: str) -> None:
        import os

        self.model_type, self.device = model_type, device
        self.weights_only = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        self.batches: list[list[str]] = []
        FakeDetoxify.made.append(self)

    def predict(self, texts: Sequence[str]) -> dict[str, list[float]]:
        self.batches.append(list(texts))
        return {"toxicity": [min(1.0, len(text) / 10_000) for text in texts], "insult": [1.0 for _ in texts]}


@pytest.fixture
def detoxify(monkeypatch: pytest.MonkeyPatch) -> type[FakeDetoxify]:
    """A stand-in for the optional package, whose models are on the network."""
    module = types.ModuleType("detoxify")
    FakeDetoxify.made = []
    module.Detoxify = FakeDetoxify  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detoxify", module)
    return FakeDetoxify
