from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from loralign.errors import ModelError
from loralign.evaluation import generate_samples
from tests.evaluation.models import build, character_tokenizer, perturb, with_adapter
from tests.evaluation.test_scoring import state

PROMPTS: list[str | list[dict[str, Any]]] = [
    "Hi",
    [{"role": "user", "content": "A rather longer question than the other?"}],
    "Third",
    "Fourth",
]


def greedy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ids: list[int], steps: int) -> str:
    """One sequence at a time, the whole of it at every step."""
    model, start = copy.deepcopy(model).eval(), len(ids)
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids = [*ids, token]
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def test_answers_are_greedy_with_and_without_the_adapter() -> None:
    tokenizer = character_tokenizer()
    base = build("llama")
    bare = copy.deepcopy(base)
    model = with_adapter(base, std=0.2).train()
    before = state(model)
    first, second = generate_samples(model, tokenizer, PROMPTS, max_new_tokens=12, n=2)
    assert state(model) == before
    ids = tokenizer(text=PROMPTS[0])["input_ids"]
    assert first.prompt == "Hi"
    assert first.with_adapter == greedy(model, tokenizer, ids, 12)
    assert first.without_adapter == greedy(bare, tokenizer, ids, 12)
    assert first.with_adapter != first.without_adapter
    rendered = tokenizer.apply_chat_template(PROMPTS[1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert second.prompt == "A rather longer question than the other?"
    assert second.with_adapter == greedy(model, tokenizer, rendered, 12)


def test_before_is_the_answer_of_the_reference_where_that_is_an_adapter() -> None:
    """A run that goes on from an adapter keeps a copy of it, which is what it is compared to."""
    tokenizer = character_tokenizer()
    model = with_adapter(build("llama"), std=0.2, seed=1)
    model.add_adapter("ref", model.peft_config["default"])
    perturb(model, "ref", 0.3, seed=5)
    (found,) = generate_samples(model, tokenizer, PROMPTS, reference="ref", max_new_tokens=12, n=1)
    ids = tokenizer(text=PROMPTS[0])["input_ids"]
    assert found.with_adapter == greedy(model, tokenizer, ids, 12)
    model.set_adapter("ref")
    assert found.without_adapter == greedy(model, tokenizer, ids, 12)
    with model.disable_adapter():
        assert found.without_adapter != greedy(model, tokenizer, ids, 12)


def test_sampling_defaults_of_the_model_are_not_used() -> None:
    model = build("qwen3")
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9)
    first = generate_samples(model, character_tokenizer(), PROMPTS, max_new_tokens=8, n=1)
    assert first == generate_samples(model, character_tokenizer(), PROMPTS, max_new_tokens=8, n=1)
    assert first[0].with_adapter == greedy(
        model, character_tokenizer(), character_tokenizer()(text="Hi")["input_ids"], 8
    )
    assert first[0].without_adapter is None


def test_no_prompts_and_no_template() -> None:
    assert generate_samples(build("llama"), character_tokenizer(), []) == []
    with pytest.raises(ModelError, match="no chat template"):
        generate_samples(build("llama"), character_tokenizer(None), PROMPTS)
