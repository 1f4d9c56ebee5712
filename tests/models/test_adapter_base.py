"""Which base an adapter belongs to, and the start that is kept beside one."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from loralign.errors import AdapterError, ConfigError, StateError
from loralign.models import inspect_adapter, keep_start, load_start
from loralign.models.adapter import named_base, same_base
from tests.models.tiny_models import write_adapter


def test_the_base_of_an_adapter(model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = LlamaForCausalLM.from_pretrained(model_directory)
    info = inspect_adapter(write_adapter(tmp_path / "adapter", base, revision="v2"))
    assert named_base(info) == (str(model_directory), "v2")
    # The revision belongs to the base however that is spelled, and to no other.
    monkeypatch.chdir(model_directory.parent)
    assert named_base(info, "tiny") == ("tiny", "v2")
    assert named_base(info, "tiny", "v3") == ("tiny", "v3")
    assert named_base(info, "owner/other") == ("owner/other", None)
    with pytest.raises(ConfigError, match="revision"):
        named_base(info, revision="v3")
    base.name_or_path = ""
    nameless = inspect_adapter(write_adapter(tmp_path / "nameless", base))
    assert named_base(nameless, "owner/other") == ("owner/other", None)
    with pytest.raises(AdapterError, match="does not name its base"):
        named_base(nameless)


def test_names_of_one_base(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_directory.parent)
    assert same_base(str(model_directory), "tiny")
    assert same_base("owner/model", "owner/model")
    assert not same_base("owner/model", "owner/other")
    assert not same_base("tiny", "owner/model")


def test_a_start_is_kept_once_and_never_taken_for_that_of_another_adapter(
    model_directory: Path, cache: Path, tmp_path: Path
) -> None:
    base = LlamaForCausalLM.from_pretrained(model_directory)
    first, other = (
        load_start(str(write_adapter(tmp_path / name, base, lora_alpha=alpha)))
        for name, alpha in (("first", 8), ("other", 16))
    )
    assert keep_start(first, tmp_path / "start") == str(tmp_path / "start")
    written = (tmp_path / "start/config.json").stat().st_mtime_ns
    assert keep_start(first, tmp_path / "start") == str(tmp_path / "start")
    with pytest.raises(StateError, match="start of another adapter"):
        keep_start(other, tmp_path / "start")
    assert (tmp_path / "start/config.json").stat().st_mtime_ns == written
