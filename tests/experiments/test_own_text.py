from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralign.errors import DataError, ModelError, StateError
from loralign.experiments.language import language_rows, read_language, score_language
from loralign.experiments.own_text import read_own_text, write_own_text
from loralign.runs.opening import open_local
from tests.cli.conftest import with_template
from tests.models.tiny_models import write_model


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with opinions: random weights, ten times as large."""
    path = write_model(tmp_path_factory.mktemp("model") / "start")
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    model.save_pretrained(path)
    return with_template(path)


def rise(adapter: Path, text: Any, tmp_path: Path) -> float:
    score_language(adapter, text, tmp_path / "losses.parquet")
    losses = read_language(tmp_path / "losses.parquet")
    return sum(losses.after) / len(losses.after) - sum(losses.before) / len(losses.before)


def test_texts_are_drawn_from_the_start_by_their_seed(start: Path, tmp_path: Path) -> None:
    for name, samples, seed in (("a", 5, 0), ("b", 5, 0), ("c", 5, 1), ("d", 3, 0)):
        write_own_text(tmp_path / name, samples, str(start), seed=seed)
    drawn = {name: [one.ids for one in read_own_text(tmp_path / name)] for name in "abcd"}
    assert drawn["a"] == drawn["b"]
    assert drawn["a"] != drawn["c"]
    assert drawn["d"] == drawn["a"][:3]
    # Of a tokenizer without a token that begins a text, each starts with the one that ends it, which does not count.
    assert {ids[0] for ids in drawn["a"]} == {2}
    assert all(one.prompt_length == 1 for one in read_own_text(tmp_path / "a"))
    assert {len(ids) for ids in drawn["a"]} == {97}


def test_a_model_that_only_learns_to_be_brief_does_not_seem_to_gain(tmp_path: Path) -> None:
    """Texts that stop where they end would say so: the short ones become likelier, and each would count alike."""
    brief = write_model(tmp_path / "start")
    adapter = briefer(brief, tmp_path / "adapter")
    write_own_text(tmp_path / "own.json", 64, str(brief), seed=1)
    own = read_own_text(tmp_path / "own.json")
    ends = [one.ids.index(2, 1) if 2 in one.ids[1:] else 96 for one in own]
    assert min(ends) < 12
    stopping = [replace(one, ids=one.ids[: end + 1]) for one, end in zip(own, ends, strict=True)]
    assert rise(adapter, stopping, tmp_path) < 0
    assert rise(adapter, own, tmp_path) > 0


def briefer(start: Path, target: Path) -> Path:
    """A start that ends one text in forty at every token, and an adapter that makes it one in twenty."""
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)
    size = len(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Every hidden state is the first unit vector, of which the head makes the odds.
        model.get_input_embeddings().weight[:, 0] = 1
        model.model.norm.weight[0] = 1
        state = model.model(torch.tensor([[1, 2]])).last_hidden_state[0, 0, 0]
        model.lm_head.weight[2, 0] = math.log((size - 1) / 39) / state
    model.save_pretrained(start)
    config = LoraConfig(r=1, target_modules=["lm_head"], task_type="CAUSAL_LM", lora_alpha=1)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.zero_()
        layer = tuned.base_model.model.lm_head
        layer.lora_A["default"].weight[0, 0] = 1
        layer.lora_B["default"].weight[2, 0] = (math.log((size - 1) / 19) - math.log((size - 1) / 39)) / state
    tuned.save_pretrained(target, save_embedding_layers=False)
    tokenizer.save_pretrained(target)
    return target


def test_a_change_makes_a_model_worse_at_what_it_wrote_itself(start: Path, tmp_path: Path) -> None:
    """The rise of the loss estimates a Kullback-Leibler divergence; on arbitrary text it has no sign."""
    write_own_text(tmp_path / "own.json", 8, str(start))
    own = read_own_text(tmp_path / "own.json")
    # Texts of any tokens that the start would hardly write.
    other = [replace(one, ids=[(7 * token + 5) % 256 for token in one.ids]) for one in own]
    adapters = [changed(start, tmp_path / f"adapter{seed}", seed) for seed in range(4)]
    assert min(rise(adapter, own, tmp_path) for adapter in adapters) > 0.5
    assert min(rise(adapter, other, tmp_path) for adapter in adapters) < 0


def test_texts_are_cut_at_the_length_that_is_asked_for(start: Path, tmp_path: Path) -> None:
    write_own_text(tmp_path / "own.json", 2, str(start))
    own, adapter = read_own_text(tmp_path / "own.json"), changed(start, tmp_path / "adapter", 0)
    for name, text, length in (("a", own, 9), ("b", [replace(one, ids=one.ids[:9]) for one in own], None)):
        score_language(adapter, text, tmp_path / name, max_length=length)
    assert read_language(tmp_path / "a") == read_language(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "{}", '{"ids": [["a"]]}', '{"ids": 3}', '{"ids": []}', '{"ids": [[1, 2]]}'])
def test_damaged_texts_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(StateError, match="drawn again"):
        read_own_text(tmp_path / "own.json")


def changed(start: Path, target: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(start), config).save_pretrained(target)
    AutoTokenizer.from_pretrained(start).save_pretrained(target)
    return target


def test_a_text_ends_without_the_token_that_training_closes_it_by(start: Path, tmp_path: Path) -> None:
    """Against transformers alone; of conversations the end of the answer is part of it."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    end = tokenizer.eos_token
    rows = [{"text": "abcdefgh"}, {"text": f"abcd{end}"}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapter = changed(start, tmp_path / "adapter", 0)
    score_language(
        adapter, language_rows([str(tmp_path / "text.jsonl")], 2), tmp_path / "losses.parquet", dtype="float32"
    )
    model, expected = AutoModelForCausalLM.from_pretrained(start), []
    for row in rows:
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            expected.append(float(model(input_ids=ids, labels=ids).loss))
    assert read_language(tmp_path / "losses.parquet").before == pytest.approx(expected, rel=1e-4)
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "ab", "completion": "cd"}) + "\n")
    score_language(
        adapter,
        language_rows([str(tmp_path / "answers.jsonl")], 1),
        tmp_path / "answer.parquet",
        dtype="float32",
    )
    user = [{"role": "user", "content": "ab"}]
    asked = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "cd"}], return_dict=True)[
        "input_ids"
    ]
    labels = torch.tensor([[-100] * len(asked) + whole[len(asked) :]])
    with torch.no_grad():
        loss = float(model(input_ids=torch.tensor([whole]), labels=labels).loss)
    assert read_language(tmp_path / "answer.parquet").before == pytest.approx((loss,), rel=1e-4)


def test_texts_of_one_token_say_nothing(start: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    adapter = changed(start, tmp_path / "adapter", 0)
    with pytest.raises(DataError, match="second token"):
        score_language(adapter, language_rows([str(tmp_path / "text.jsonl")], 1), tmp_path / "losses.parquet")
    assert not (tmp_path / "losses.parquet").exists()


def test_a_tokenizer_without_separators_is_refused(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(*parts: Any) -> Any:
        local = open_local(*parts)
        local.tokenizer.bos_token = local.tokenizer.eos_token = None
        return local

    monkeypatch.setattr("loralign.experiments.own_text.open_local", bare)
    with pytest.raises(ModelError, match="begins or ends"):
        write_own_text(tmp_path / "own.jsonl", 3, str(start))
