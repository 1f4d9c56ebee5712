"""The base of an adapter that an alignment goes on training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from loralign.models import ModelSource, resolve_model
from tests.cli.conftest import SMALL, assert_refused
from tests.cli.test_resume_faults import other_weights
from tests.models.tiny_models import write_adapter

SHORT = (*SMALL, "--samples", "0", "--max_steps", "1")


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    return other_weights(model, tmp_path / "b")


@pytest.fixture
def adapter(other: Path, tmp_path: Path) -> Path:
    """Of the other model."""
    return write_adapter(tmp_path / "adapter", LlamaForCausalLM.from_pretrained(other))


@pytest.fixture
def default(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model is the first one."""

    def resolve(name: str | None = None, *, revision: str | None = None) -> ModelSource:
        return resolve_model(name or str(model), revision=revision)

    for place in ("loralign.runs.prepare", "loralign.models.loading"):
        monkeypatch.setattr(f"{place}.resolve_model", resolve)


def test_an_adapter_is_put_on_the_base_that_it_names(
    default: None, loralign: Any, adapter: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    words = ("align", "--adapter", adapter, "--data", data, "--validation_data", data, *SHORT)
    unnamed = loralign(*words, "--output_dir", "unnamed")
    assert unnamed.code == 0, unnamed.err
    named = loralign(*words, "--output_dir", "named", "--model", other)
    assert named.code == 0, named.err
    config = json.loads((tmp_path / "unnamed/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(other)
    assert json.loads((tmp_path / "unnamed/run.json").read_text())["model"] == str(other)
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("unnamed", "named")]
    assert scores[0] == scores[1]
    trained = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("unnamed", "named")]
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_another_base_is_taken_with_a_warning(
    loralign: Any, adapter: Path, other: Path, model: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("align", "--adapter", adapter, "--data", data, *SHORT, "--output_dir", "out")
    with caplog.at_level(logging.WARNING, logger="loralign"):
        result = loralign(*words, "--model", model)
    assert result.code == 0, result.err
    told = [one.getMessage() for one in caplog.records if one.name == "loralign.runs.prepare"]
    assert told == [f"{adapter} names the base {other}, but is put on {model}"]
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model)


def test_the_base_that_an_adapter_names_is_not_cleared(loralign: Any, model: Path, data: Path, tmp_path: Path) -> None:
    start = other_weights(model, tmp_path / "out/start")
    adapter = write_adapter(tmp_path / "adapter", LlamaForCausalLM.from_pretrained(start))
    (tmp_path / "out/run.json").write_text("{}")
    words = ("align", "--adapter", adapter, "--data", data, *SHORT, "--output_dir", "out", "--overwrite")
    assert_refused(loralign(*words), "which the run needs")
    assert (start / "model.safetensors").is_file()


def test_a_revision_belongs_to_a_model(loralign: Any, adapter: Path, data: Path) -> None:
    words = ("align", "--adapter", adapter, "--data", data, "--revision", "v2", *SHORT)
    assert_refused(loralign(*words), "revision", "--model")
