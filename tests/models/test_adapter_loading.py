from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralign.errors import AdapterError, ModelError
from loralign.models import inspect_adapter, load_adapter, load_model, resolve_model, weights_location
from tests.models.tiny_models import write_adapter, write_model

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def saved(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = load_model(str(model_directory), dtype="float32")
    return write_adapter(tmp_path_factory.mktemp("adapter") / "saved", base.model)


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A good adapter that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def change_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def failure(adapter: Path, *, base: Any = None) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        load_adapter(adapter, base)
    assert str(caught.value.place).startswith(str(adapter))
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_adapter_finds_its_base_and_computes_what_its_factors_say(adapter: Path, model_directory: Path) -> None:
    model, tokenizer, source = load_adapter(adapter)
    assert source.location == str(model_directory)
    assert tokenizer.pad_token_id == 0
    tensors = load_file(adapter / "adapter_model.safetensors")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32, dtype=layer.base_layer.weight.dtype)
    delta = tensors[f"{Q_PROJ}.lora_B.weight"] @ tensors[f"{Q_PROJ}.lora_A.weight"]
    expected = layer.base_layer(x).float() + 2 * x.float() @ delta.T
    torch.testing.assert_close(layer(x).float(), expected, rtol=2e-2, atol=2e-1)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_trainable_adapter_has_gradients_in_its_factors_only(adapter: Path) -> None:
    model, _, _ = load_adapter(adapter, is_trainable=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trainable) == 8


def test_a_given_base_is_used(adapter: Path, model_directory: Path) -> None:
    change_config(adapter, base_model_name_or_path=None)
    base = load_model(str(model_directory))
    model, tokenizer, source = load_adapter(adapter, base)
    assert model.get_base_model() is base.model
    assert (tokenizer, source) == (base.tokenizer, base.source)


def test_inspection_reads_the_files_only(adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="owner/model", use_rslora=True)
    info = inspect_adapter(adapter)
    assert (info.base_model, info.rank, info.alpha, info.rslora) == ("owner/model", 4, 8.0, True)
    assert info.target_modules == ("down_proj", "q_proj")
    assert info.shapes[f"{Q_PROJ}.lora_A.weight"] == (4, 32)
    assert info.parameters == 2 * 4 * ((32 + 32) + (48 + 32))


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6}},
        {"target_modules": "all-linear", "use_rslora": True},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        pytest.param(
            {"lora_bias": True},
            marks=[
                pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
                # PEFT takes the bias of B for a factor that lost a dimension.
                pytest.mark.filterwarnings("ignore:Adapter 'default'. .* have invalid shape"),
            ],
        ),
    ],
    ids=["ranks", "all-linear", "dora", "embedding", "whole-module", "bias", "lora-bias"],
)
def test_other_kinds_of_lora_load_too(model_directory: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_adapter(tmp_path / "a", load_model(str(model_directory), dtype="float32").model, **options)
    model, _, _ = load_adapter(path)
    key = f"{Q_PROJ}.lora_B.weight"
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = load_file(path / "adapter_model.safetensors")[key]
    torch.testing.assert_close(layer.lora_B["default"].weight.float(), expected)


def test_an_adapter_of_the_wheel_is_recognised_on_another_machine(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adapter(tmp_path / "a", load_model(dtype="float32").model)
    recorded = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert recorded == weights_location(resolve_model())
    monkeypatch.setenv("LORALIGN_CACHE", str(tmp_path / "another"))
    shutil.rmtree(cache)
    _, _, source = load_adapter(path)
    assert (source.kind, source.name) == ("wheel", "smollm2-135m-instruct")
    change_config(path, base_model_name_or_path="smollm2-135m-instruct")
    assert load_adapter(path)[2] == source


def test_no_directory(tmp_path: Path) -> None:
    assert failure(tmp_path / "none").problem == "no such adapter directory"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no adapter_config.json"),
        ("{", "not valid JSON"),
        ("\udc80", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "peft_type is None, not 'LORA'"),
        ('{"peft_type": "IA3"}', "peft_type is 'IA3', not 'LORA'"),
        ('{"peft_type": "LORA", "r": 0, "lora_alpha": 1}', "r must be a positive whole number, not 0"),
        ('{"peft_type": "LORA", "r": "4", "lora_alpha": 1}', "r must be a positive whole number, not '4'"),
        ('{"peft_type": "LORA", "r": 4}', "lora_alpha must be a number, not None"),
        ('{"peft_type": "LORA", "r": true, "lora_alpha": 1}', "r must be a positive whole number, not True"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}', "lora_alpha must be a number, not nan"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": -Infinity}', "lora_alpha must be a number, not -inf"),
        (f'{{"peft_type": "LORA", "r": 4, "lora_alpha": 1{"0" * 400}}}', "lora_alpha must be a number, not 1000"),
    ],
)
def test_configurations_that_are_no_lora(adapter: Path, content: str | None, problem: str) -> None:
    file = adapter / "adapter_config.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert failure(adapter).problem.startswith(problem)


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "must be a list of names or one pattern, not 5"),
        (False, "must be a list of names or one pattern, not False"),
        ([1, "a"], "must be a list of names or one pattern, not [1, 'a']"),
        ({"a": 1}, "must be a list of names or one pattern, not {'a': 1}"),
        ("(", "is no regular expression: '('"),
        ("a{99999999999999999999}", "is no regular expression: 'a{99999999999999999999}'"),
    ],
)
def test_modules_that_no_configuration_can_name(adapter: Path, name: str, value: Any, problem: str) -> None:
    change_config(adapter, **{name: value})
    assert failure(adapter).problem == f"{name} {problem}"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("rank_pattern", ["x"], "must give names of modules positive whole numbers, not be ['x']"),
        ("rank_pattern", [], "must give names of modules positive whole numbers, not be []"),
        ("rank_pattern", {"a": "b"}, "must give names of modules positive whole numbers, not be {'a': 'b'}"),
        ("rank_pattern", {"a": 0}, "must give names of modules positive whole numbers, not be {'a': 0}"),
        ("rank_pattern", {"a": 4, "(": 4}, "has a name that is no regular expression: '('"),
        # Alone it is one, but not behind the names of the modules around it.
        ("rank_pattern", {"(?i)q": 4}, "has a name that is no regular expression: '(?i)q'"),
        ("alpha_pattern", 5, "must give names of modules numbers, not be 5"),
        ("alpha_pattern", {"a": "b"}, "must give names of modules numbers, not be {'a': 'b'}"),
        ("alpha_pattern", {"a": float("nan")}, "must give names of modules numbers, not be {'a': nan}"),
        ("alpha_pattern", {"(": 4.5}, "has a name that is no regular expression: '('"),
    ],
)
def test_exceptions_for_modules_that_are_none(adapter: Path, name: str, value: Any, problem: str) -> None:
    change_config(adapter, **{name: value})
    assert failure(adapter).problem == f"{name} {problem}"


def test_a_configuration_may_leave_the_choice_of_modules_out(adapter: Path) -> None:
    change_config(adapter, target_modules=None, exclude_modules=None, rank_pattern=None, alpha_pattern=None)
    assert inspect_adapter(adapter).target_modules == ()


def test_pickled_weights_are_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "the weights are pickled" in failure(adapter).problem


def test_missing_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert failure(adapter).problem == "no adapter_model.safetensors"


@pytest.mark.parametrize("cut", [0, 5, -10])
def test_truncated_weights(adapter: Path, cut: int) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert failure(adapter).problem.startswith("not a whole safetensors file")


def test_an_empty_weights_file(adapter: Path) -> None:
    change_weights(adapter, dict.clear)
    assert failure(adapter).problem == "the weights file is empty"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(adapter: Path, value: float) -> None:
    key = f"{Q_PROJ}.lora_B.weight"
    change_weights(adapter, lambda tensors: tensors[key][3, 1].fill_(value) and None)
    assert failure(adapter).problem == f"{key} holds values that are not finite"


def test_an_adapter_of_a_wider_base_names_the_first_misfit_and_both_shapes(adapter: Path, tmp_path: Path) -> None:
    base = load_model(str(write_model(tmp_path / "wide", hidden=64)))
    problem = failure(adapter, base=base).problem
    assert ".lora_" in problem
    assert "(4, 48)" not in problem
    assert "(32, 4)" in problem
    assert "(64, 4)" in problem


def test_an_adapter_of_a_deeper_base(adapter: Path, tmp_path: Path) -> None:
    base = load_model(str(write_model(tmp_path / "shallow", layers=1)))
    assert "has no module model.layers.1." in failure(adapter, base=base).problem


def test_a_rank_that_the_weights_do_not_have(adapter: Path) -> None:
    change_config(adapter, r=8)
    problem = failure(adapter).problem
    assert "(4, 48)" in problem
    assert "(8, 48)" in problem


def test_a_layer_without_its_factors(adapter: Path) -> None:
    key = f"{Q_PROJ}.lora_B.weight"

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[key]

    change_weights(adapter, remove)
    assert failure(adapter).problem == f"1 tensors are missing, first {key}"


def test_target_modules_that_match_nothing(adapter: Path) -> None:
    change_config(adapter, target_modules=["nothing"])
    assert "cannot be put on" in failure(adapter).problem


def test_a_base_that_was_named_from_its_own_place_is_found_from_another(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_directory, tmp_path / "models" / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    base = load_model("models/base", dtype="float32")
    # PEFT records the place that transformers loaded from, and this library the source's name.
    path = write_adapter(tmp_path / "a", base.model)
    put, _, _ = load_adapter(path, base)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert put.peft_config["default"].base_model_name_or_path == str(tmp_path / "models" / "base")
    assert load_adapter(path)[2].location == str(tmp_path / "models" / "base")


def test_no_base_is_named(adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path=None)
    assert failure(adapter).problem == "the adapter does not name its base model"


def test_the_named_base_is_gone(adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(ModelError, match="no model named '/nowhere/at/all'"):
        load_adapter(adapter)
