from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from loralign.errors import DataError
from loralign.evaluation import generate_answers
from loralign.evaluation.model_identity import model_identity
from loralign.evaluation.responders import LocalResponder
from loralign.evaluation.responding import collect_responses, conversations
from loralign.evaluation.response_store import ResponseStore
from tests.evaluation.models import build, character_tokenizer, with_adapter
from tests.evaluation.prompts import Asked, asked_prompts

PROMPTS = asked_prompts()


def responder(model: torch.nn.Module, **options: object) -> LocalResponder:
    return LocalResponder(model, character_tokenizer(), **{"max_new_tokens": 8, "show_progress": False, **options})


def test_answers_are_those_of_the_one_generator() -> None:
    model = build("llama")
    kept: dict[int, str] = {}
    responder(model, batch_tokens=300).respond(conversations(PROMPTS), kept.__setitem__)
    expected = generate_answers(
        model, character_tokenizer(), conversations(PROMPTS), max_new_tokens=8, show_progress=False
    )
    assert [kept[index] for index in range(len(PROMPTS))] == expected
    assert len(set(expected)) > 3


def test_every_batch_is_kept_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    events: list[str] = []
    generate = model.generate

    def watched(**arguments: torch.Tensor) -> torch.Tensor:
        events.extend(["batch"])
        found: torch.Tensor = generate(**arguments)
        return found

    monkeypatch.setattr(model, "generate", watched)
    responder(model, batch_tokens=1).respond(conversations(PROMPTS), lambda *_: events.append("kept"))
    assert events == ["batch", "kept"] * len(PROMPTS)


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    class InterruptedError(Exception):
        pass

    model = build("qwen3")
    asked = responder(model, batch_tokens=300)
    whole = ResponseStore(tmp_path / "whole.jsonl", PROMPTS, asked.settings)
    expected = collect_responses(asked, whole)
    whole.close()
    store = ResponseStore(tmp_path / "part.jsonl", PROMPTS, asked.settings)
    keep, left = store.keep, [4]

    def limited(index: int, answer: str) -> None:
        if not left[0]:
            raise InterruptedError
        left[0] -= 1
        keep(index, answer)

    store.keep = limited  # type: ignore[method-assign]
    with store, pytest.raises(InterruptedError):
        collect_responses(asked, store)
    with ResponseStore(tmp_path / "part.jsonl", PROMPTS, asked.settings) as again:
        assert len(again) == 4
        assert collect_responses(asked, again) == expected


def test_settings_tell_models_and_generation_apart() -> None:
    model = with_adapter(build("llama"), std=0.1)
    first = responder(model).settings
    assert json.loads(json.dumps(first)) == first
    assert responder(model, batch_tokens=1, description="x").settings == first
    with model.disable_adapter():
        assert responder(model).settings != first
    assert responder(model).settings == first
    for change in ({"max_new_tokens": 9}, {"temperature": 0.5}, {"top_p": 0.5}, {"seed": 1}):
        assert responder(model, **change).settings != first
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        next(parameter for name, parameter in tuned.named_parameters() if "lora_B" in name).add_(1e-3)
    assert model_identity(tuned)["weights"] != model_identity(model)["weights"]
    assert model_identity(copy.deepcopy(model)) == model_identity(model)
    assert model_identity(copy.deepcopy(model).to(torch.bfloat16)) != model_identity(model)


def test_the_name_is_given_or_the_models_own() -> None:
    model = build("llama")
    assert responder(model).name == "LlamaForCausalLM"
    model.config._name_or_path = "models/small"
    assert responder(model).name == "models/small"
    assert responder(model, name="tuned").name == "tuned"


def test_a_prompt_longer_than_the_window_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    prompts = [*PROMPTS, Asked("long", "x" * 300)]
    asked = responder(build("llama"))
    with (
        ResponseStore(tmp_path / "responses.jsonl", prompts, asked.settings) as store,
        pytest.raises(DataError, match=r"prompt 9: .* do not fit into the model's 256 positions"),
    ):
        collect_responses(asked, store)
    assert len(store) == 0


def test_a_progress_bar_shows_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    responder(build("llama"), show_progress=True, description="asking").respond(["Hi", "T"], lambda *_: None)
    shown = capsys.readouterr().err
    assert "asking: 100%" in shown
    assert "answer/s" in shown or "s/answer" in shown
