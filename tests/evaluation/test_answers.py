from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from loralign.errors import ConfigError, DataError, ModelError
from loralign.evaluation import generate_answers
from loralign.evaluation.answers import Prompt, prompt_text
from tests.evaluation.models import build, character_tokenizer, with_adapter
from tests.evaluation.test_samples import greedy
from tests.evaluation.test_scoring import state

PROMPTS: list[Prompt] = [
    "Hi",
    [{"role": "user", "content": "A rather longer question than the other ones here?"}],
    "T",
    "What is this, and why " * 3,
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well"}],
    "Hello there",
    "Hi again",
]


def ids_of(prompt: Prompt, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [1, 150, 4096])
def test_answers_in_batches_are_those_of_each_prompt_alone(architecture: str, batch_tokens: int) -> None:
    tokenizer, model = character_tokenizer(), build(architecture)
    found = generate_answers(
        model, tokenizer, PROMPTS, max_new_tokens=10, batch_tokens=batch_tokens, show_progress=False
    )
    assert found == [greedy(model, tokenizer, ids_of(prompt, tokenizer), 10) for prompt in PROMPTS]
    assert len(set(found)) > 3


def test_an_answer_ends_where_the_model_ends_it() -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    longest = generate_answers(model, tokenizer, ["Hi"], max_new_tokens=12, show_progress=False)[0]
    assert len(longest) > 3
    # The third character now ends the text, as it would were it the end-of-text token.
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(longest[2])
    ended = generate_answers(model, tokenizer, ["Hi", "T"], max_new_tokens=12, show_progress=False)[0]
    assert ended in (longest[:3].strip(), longest[: longest.index(longest[2]) + 1].strip())


def test_the_model_is_left_as_it_was_and_dropout_is_off() -> None:
    tokenizer = character_tokenizer()
    model = with_adapter(build("llama"), std=0.2).train()
    before, random = state(model), torch.get_rng_state()
    first = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, show_progress=False)
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, show_progress=False) == first
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    with model.disable_adapter():
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, show_progress=False) != first


def test_batches_have_few_shapes_and_keep_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    shapes: list[tuple[int, int]] = []
    generate = model.generate

    def watched(**arguments: Any) -> torch.Tensor:
        shapes.append(tuple(arguments["input_ids"].shape))
        found: torch.Tensor = generate(**arguments)
        return found

    monkeypatch.setattr(model, "generate", watched)
    prompts = ["x" * length for length in range(1, 91)]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=4, batch_tokens=400, show_progress=False)
    assert len(answers) == 90
    assert sum(rows for rows, _ in shapes) == 90
    assert {length for _, length in shapes} == {96, 64, 32}
    assert shapes == sorted(shapes, key=lambda shape: -shape[1])
    assert all(rows * (length + 4) <= 400 for rows, length in shapes)
    assert len(set(shapes)) <= 4


def test_sampling_follows_its_seed_alone() -> None:
    tokenizer, model = character_tokenizer(), build("llama")

    def sampled(seed: int, temperature: float = 1.0, **options: Any) -> list[str]:
        return generate_answers(
            model, tokenizer, PROMPTS, temperature=temperature, seed=seed, show_progress=False, **options
        )

    torch.manual_seed(1)
    random = torch.get_rng_state()
    first = sampled(5)
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(2)
    assert sampled(5) == first
    assert sampled(6) != first
    greedy_ones = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, show_progress=False)
    assert sampled(5, max_new_tokens=8) != greedy_ones
    assert sampled(5, max_new_tokens=8, temperature=1e-5) == greedy_ones
    assert sampled(5, max_new_tokens=8, top_p=1e-6) == greedy_ones


def test_generation_settings_of_the_model_are_not_used() -> None:
    tokenizer, model = character_tokenizer(), build("qwen3")
    plain = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, show_progress=False)
    changed = copy.deepcopy(model)
    changed.generation_config.update(
        do_sample=True, temperature=5.0, top_p=0.9, top_k=3, repetition_penalty=1.8, no_repeat_ngram_size=2, num_beams=2
    )
    assert generate_answers(changed, tokenizer, PROMPTS, max_new_tokens=8, show_progress=False) == plain


def test_a_progress_bar_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    generate_answers(model, tokenizer, ["Hi", "T"], max_new_tokens=2, description="answering the probe")
    assert "answering the probe: 100%" in capsys.readouterr().err
    generate_answers(model, tokenizer, ["Hi", "T"], max_new_tokens=2, show_progress=False)
    assert capsys.readouterr().err == ""


def test_no_prompts_have_no_answers() -> None:
    assert generate_answers(build("llama"), character_tokenizer(), [], show_progress=False) == []


def test_a_prompt_may_fill_the_positions_to_the_last() -> None:
    tokenizer, model = character_tokenizer(), build("gpt2")
    prompts: list[Prompt] = ["x" * 195, "y" * 130]
    found = generate_answers(model, tokenizer, prompts, max_new_tokens=5, show_progress=False)
    assert found == [greedy(model, tokenizer, ids_of(prompt, tokenizer), 5) for prompt in prompts]
    with pytest.raises(DataError, match=r"prompt 1: 196 tokens and an answer of 5 do not fit into .* 200 positions"):
        generate_answers(model, tokenizer, ["x", "x" * 196], max_new_tokens=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("batch_tokens", 0),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ],
)
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name):
        generate_answers(build("llama"), character_tokenizer(), ["Hi"], **options)


def test_prompts_that_cannot_be_answered_are_refused() -> None:
    with pytest.raises(DataError, match="prompt 1: the prompt has no token"):
        generate_answers(build("llama"), character_tokenizer(), ["Hi", ""])
    with pytest.raises(ModelError, match="no chat template"):
        generate_answers(build("llama"), character_tokenizer(None), PROMPTS)


def test_a_conversation_as_text() -> None:
    assert prompt_text("Hi") == "Hi"
    assert prompt_text(PROMPTS[4]) == "Be brief.\n\nWell"
