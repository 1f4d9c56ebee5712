from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from loralign.data import Preferences, limit_length, load_preferences
from loralign.data.lengths import tokenize_pair
from loralign.errors import DataError
from tests.data.preference_rows import message, pair, plain_pair

Write = Callable[..., str]


def sized(prompt: int, chosen: int, rejected: int, objective: str = "a", start: str = "") -> dict[str, Any]:
    """A plain pair with these numbers of tokens, the end-of-text tokens included."""
    sides = {"chosen": start + "c" * (chosen - 1 - len(start)), "rejected": start + "r" * (rejected - 1 - len(start))}
    return {"prompt": "p" * prompt, **sides, "objective": objective}


@pytest.fixture
def load(write: Write) -> Callable[..., Preferences]:
    return lambda *rows: load_preferences(write(*rows))


def test_drop_takes_out_every_pair_that_is_too_long(load: Callable[..., Preferences], tokenizer: Any) -> None:
    rows = [sized(10, 10, 5), sized(10, 11, 5), sized(10, 5, 11), sized(5, 15, 15, "b")]
    limited, report = limit_length(load(*rows), tokenizer, max_length=20)
    assert limited.dataset.to_list() == [rows[0], rows[3]]
    assert limited.counts == report.kept == {"a": 1, "b": 1}
    assert report.dropped == {"a": 2, "b": 0}
    assert report.truncated == {"a": 0, "b": 0}
    assert report.quantiles["a"] == pytest.approx((21, 21, 21, 21))
    assert report.quantiles["b"][-1] == 20
    assert report.as_dict()["policy"] == "drop"
    assert "a: 1 kept, 2 dropped, 0 truncated" in str(report)


def test_truncate_keeps_what_still_has_something_to_learn_from(
    load: Callable[..., Preferences], tokenizer: Any
) -> None:
    fits, cut = sized(10, 10, 10), sized(10, 40, 5)
    prompt_fills, same_until_the_cut = sized(20, 5, 9), sized(10, 40, 40, start="s" * 10)
    differs_in_time = sized(10, 40, 40, start="s" * 9)
    preferences = load(fits, cut, prompt_fills, same_until_the_cut, differs_in_time)
    limited, report = limit_length(preferences, tokenizer, max_length=20, policy="truncate")
    assert limited.dataset.to_list() == [fits, cut, differs_in_time]
    assert (report.kept, report.dropped, report.truncated) == ({"a": 3}, {"a": 2}, {"a": 2})


@pytest.mark.parametrize("policy", ["drop", "truncate"])
def test_a_limit_of_the_prompt_alone(load: Callable[..., Preferences], tokenizer: Any, policy: Any) -> None:
    preferences = load(sized(8, 4, 4), sized(9, 4, 4))
    _, report = limit_length(preferences, tokenizer, max_length=99, max_prompt_length=8, policy=policy)
    assert (report.kept, report.dropped) == ({"a": 1}, {"a": 1})


def test_nothing_changes_under_a_generous_limit(load: Callable[..., Preferences], tokenizer: Any) -> None:
    preferences = load(pair(0), pair(1))
    limited, _ = limit_length(preferences, tokenizer, max_length=500)
    assert (limited.fingerprint, limited.sources) == (preferences.fingerprint, preferences.sources)


def test_an_objective_left_without_pairs(load: Callable[..., Preferences], tokenizer: Any) -> None:
    preferences = load(sized(4, 4, 4), sized(30, 9, 12, "b"))
    with pytest.raises(DataError, match=r"no pair of the objective 'b' is within 20 tokens \(the shortest has 42\)"):
        limit_length(preferences, tokenizer, max_length=20)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_length": 0}, "max_length: a limit of 0 tokens"),
        ({"max_length": 9, "max_prompt_length": -1}, "max_prompt_length: a limit of -1 tokens"),
        ({"max_length": 9, "policy": "cut"}, "policy: no length policy 'cut'"),
    ],
)
def test_limits_that_cannot_be_meant(
    load: Callable[..., Preferences], tokenizer: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        limit_length(load(pair(0)), tokenizer, **options)


def test_conversations_need_a_chat_template(
    load: Callable[..., Preferences], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(DataError, match="no chat template"):
        limit_length(load(pair(0)), tokenizer, max_length=99)
    _, report = limit_length(load(plain_pair(0)), tokenizer, max_length=99)
    assert report.kept == {"helpful": 1}


def test_a_template_that_refuses_the_roles(
    load: Callable[..., Preferences], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no such role') }}")
    with pytest.raises(DataError, match=r"refuses the roles \['user'\]: no such role"):
        limit_length(load(pair(0)), tokenizer, max_length=99)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "row",
    [
        pair(3, None),
        plain_pair(3, None),
        {**plain_pair(3, None), "chosen": " ends itself</s>"},
        {**pair(3, None), "prompt": [message("system", "Be brief."), message("user", "Grüße")]},
    ],
    ids=["conversational", "plain", "end-of-text", "system"],
)
def test_pairs_are_tokenised_as_trl_does(row: dict[str, Any], tokenizer: Any, tmp_path: Any) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    )
    theirs, ours = trainer.train_dataset[0], tokenize_pair(row, tokenizer)
    assert ours.prompt == theirs["prompt_ids"]
    assert ours.chosen == theirs["chosen_ids"]
    assert ours.rejected == theirs["rejected_ids"]
    assert ours.longest == len(theirs["prompt_ids"]) + max(len(theirs["chosen_ids"]), len(theirs["rejected_ids"]))
