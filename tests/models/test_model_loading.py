from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoTokenizer

from loralign.errors import ModelError
from loralign.models import choose_dtype, load_model
from loralign.models.dtype import has_fast_bfloat16
from tests.models.tiny_models import write_model


@pytest.fixture
def copy(model_directory: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(model_directory, tmp_path / "copy"))


def failure(name: str | Path, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), **options)
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_directory_is_loaded_in_the_type_asked_for(model_directory: Path, dtype: Any) -> None:
    loaded = load_model(str(model_directory), dtype=dtype)
    assert loaded.model.dtype == getattr(torch, dtype)
    assert not loaded.model.training
    assert loaded.source.kind == "path"
    ids = loaded.tokenizer("a b", return_tensors="pt")["input_ids"]
    assert bool(torch.isfinite(loaded.model(input_ids=ids).logits).all())


@pytest.mark.parametrize(
    ("cuda", "capabilities", "expected"),
    [
        (None, {}, torch.float32),
        (None, {"avx512_bf16": True}, torch.bfloat16),
        (None, {"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        (True, {}, torch.bfloat16),
        (False, {"avx512_bf16": True}, torch.float32),
    ],
)
def test_the_automatic_type_is_bfloat16_only_in_hardware(
    monkeypatch: pytest.MonkeyPatch, cuda: bool | None, capabilities: Mapping[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(cuda))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_dtype("auto") == expected


def test_an_older_torch_that_cannot_tell_its_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_fast_bfloat16() is False


def test_an_unknown_type(model_directory: Path) -> None:
    error = failure(model_directory, dtype="int8")
    assert (error.place, error.problem) == ("dtype", "no dtype named 'int8'")


def test_a_tokenizer_without_padding_pads_with_the_end_of_text(tmp_path: Path) -> None:
    loaded = load_model(str(write_model(tmp_path / "m", pad=False)))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 2


def test_a_padding_token_of_its_own_is_kept(model_directory: Path) -> None:
    loaded = load_model(str(model_directory))
    assert loaded.tokenizer.pad_token_id == 0
    assert loaded.model.config.pad_token_id == 0


def test_a_tokenizer_without_any_end(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(copy)
    assert "neither a padding nor an end-of-text token" in failure(copy).problem


def test_four_bits_without_bitsandbytes(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    error = failure(model_directory, load_in_4bit=True)
    assert error.place == "load_in_4bit"
    assert error.fix == "pip install loralign[quantization]"


def test_four_bits_ask_transformers_for_nf4(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def note(location: str, **options: Any) -> None:
        asked.update(options)
        raise RuntimeError("that is enough")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("loralign.models.loading.AutoModelForCausalLM.from_pretrained", note)
    assert "that is enough" in failure(model_directory, load_in_4bit=True, dtype="bfloat16").problem
    quantisation = asked["quantization_config"]
    assert (quantisation.load_in_4bit, quantisation.bnb_4bit_quant_type) == (True, "nf4")
    assert quantisation.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked["trust_remote_code"] is False
    assert asked["use_safetensors"] is True


def test_code_that_comes_with_a_model_is_not_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "c.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    error = failure(copy)
    assert not (tmp_path / "ran").exists()
    assert "needs code of its own, which is never run" in error.problem


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("model.safetensors", "no"),
        ("tokenizer.json", "{"),
        ("config.json", '{"model_type": "x"}'),
    ],
)
def test_a_damaged_file_is_one_line(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)
    assert failure(copy).place == f"model {copy}"


def test_a_model_that_is_not_for_causal_language(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "vit", "architectures": ["ViTModel"]}
    (copy / "config.json").write_text(json.dumps(config))
    assert "cannot be loaded as a causal language model" in failure(copy).problem


@pytest.mark.usefixtures("offline")
def test_a_hub_name_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = failure("some-owner/some-model")
    assert error.place == "model some-owner/some-model"
    assert "the hub cannot be reached" in error.problem


@pytest.mark.parametrize(
    ("cause", "problem"),
    [
        (GatedRepoError, "only to those who accepted its licence"),
        (RepositoryNotFoundError, "the hub has no such model"),
        (RevisionNotFoundError, "the hub has no revision 'v9' of it"),
        (LocalEntryNotFoundError, "the hub cannot be reached"),
    ],
)
def test_every_refusal_of_the_hub_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, cause: type[Exception], problem: str
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        # transformers raises an OSError with its own words from the hub client's error.
        # The hub client's errors need a response to be made; only their class counts here.
        raise OSError("We could not load it.\nSee the manual.") from cause.__new__(cause)

    monkeypatch.setattr("loralign.models.loading.AutoTokenizer.from_pretrained", refuse)
    assert problem in failure("owner/model", revision="v9").problem


def test_a_hub_model_without_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("owner/model does not appear to have a file named model.safetensors")

    monkeypatch.setattr("loralign.models.loading.AutoTokenizer.from_pretrained", refuse)
    error = failure("owner/model")
    assert error.problem.startswith("no safetensors weights")
    assert error.fix == "save the model as safetensors"
