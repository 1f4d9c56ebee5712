from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM

from loralign.errors import ConfigError, DataError, ModelError, NonFiniteError
from loralign.evaluation import opening_logprobs as opening_logprobs_module
from loralign.evaluation.opening_logprobs import opening_logprobs
from loralign.evaluation.opening_tree import opening_tree, prefix_free
from loralign.evaluation.refusal_openings import OPENINGS, Openings, score_openings
from loralign.evaluation.responding import conversations
from tests import zoo
from tests.evaluation.models import build, character_tokenizer, with_adapter
from tests.evaluation.prompts import asked_prompts
from tests.evaluation.test_scoring import state

# Nested, branching, a single token, and one that is the beginning of another.
TREE = [(5, 6, 7), (5, 6, 8, 9), (5, 10), (11,), (12, 6), (5, 6)]


def prompts(count: int = 7, beginning: Sequence[int] = (), seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [*beginning, *torch.randint(3, zoo.VOCABULARY, (1 + 9 * index % 50,), generator=generator).tolist()]
        for index in range(count)
    ]


def dense(model: torch.nn.Module, asked: Sequence[Sequence[int]], openings: Sequence[Sequence[int]]) -> np.ndarray:
    """Σ log π of every opening after every prompt: one sequence at a time, without padding or mask, in float64."""
    double = copy.deepcopy(model).double().eval()
    found = np.zeros((len(asked), len(openings)))
    for row, prompt in enumerate(asked):
        for column, opening in enumerate(openings):
            with torch.no_grad():
                logits = double(input_ids=torch.tensor([[*prompt, *opening]])).logits[0]
            log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
            found[row, column] = sum(log_probs[place, token].item() for place, token in enumerate(opening))
    return found


def built(architecture: str, dtype: torch.dtype) -> torch.nn.Module:
    """Weights large enough that every token counts."""
    model = zoo.lora_model(architecture, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "lora" not in name and "ln_" not in name:
                parameter.mul_(8)
    return model


def test_the_dense_values_depend_on_everything_that_could_be_confused() -> None:
    model = built("llama", torch.float64)
    values = dense(model, prompts(), TREE)
    swapped = dense(model, prompts(), [(6, 5, 7), *TREE[1:]])
    assert np.abs(values[:, 0] - swapped[:, 0]).min() > 0.01
    assert values.std(axis=0).min() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mixtral"])
@pytest.mark.parametrize("beginning", [(), (40, 41, 42, 43, 44)])
def test_openings_are_those_of_dense_float64(
    architecture: str, attention: str, beginning: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(architecture, torch.float64)
    model.get_base_model().set_attn_implementation(attention)
    ways: list[int] = []
    together = opening_logprobs_module._together
    monkeypatch.setattr(
        opening_logprobs_module, "_together", lambda *given: ways.append(len(given[1])) or together(*given)
    )
    asked = prompts(beginning=beginning)
    for batch_tokens in (4096, 130, 1):
        ways.clear()
        found = opening_logprobs(model, asked, opening_tree(TREE), batch_tokens=batch_tokens, progress=False)
        # Eager attention takes its softmax in float32.
        tolerance = 1e-5 if attention == "eager" and architecture != "gpt2" else 1e-9
        np.testing.assert_allclose(found, dense(model, asked, TREE), rtol=0, atol=tolerance)
        # In one pass over tree and prompts, with the shared beginning read apart.
        assert set(ways) == {len(beginning)}
    assert len(ways) == len(asked)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_float32_is_float64_but_for_rounding(architecture: str) -> None:
    model = built(architecture, torch.float32)
    found = opening_logprobs(model, prompts(), opening_tree(TREE), progress=False)
    np.testing.assert_allclose(found, dense(model, prompts(), TREE), rtol=0, atol=2e-3)


@pytest.mark.parametrize("architecture", ["gemma2", "granite", "cohere"])
def test_what_a_model_does_to_its_logits_is_done_here_too(architecture: str) -> None:
    model = build(architecture, dtype=torch.float64)
    asked = prompts(beginning=(7, 8, 9))
    found = opening_logprobs(model, asked, opening_tree(TREE), progress=False)
    np.testing.assert_allclose(found, dense(model, asked, TREE), rtol=0, atol=1e-5)


def recurrent() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": zoo.VOCABULARY, "hidden_size": 24, "state_size": 4, "num_hidden_layers": 2}
    return MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0, initializer_range=0.5)).double()


def test_a_model_without_attention_is_asked_one_opening_at_a_time() -> None:
    model = recurrent()
    found = opening_logprobs(model, prompts(), opening_tree(TREE), progress=False)
    np.testing.assert_allclose(found, dense(model, prompts(), TREE), rtol=0, atol=1e-9)


def test_a_model_that_does_not_heed_the_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama", torch.float64)
    mask = opening_logprobs_module._mask
    # As recurrent layers would do, the nodes see their siblings.
    monkeypatch.setattr(opening_logprobs_module, "_mask", lambda *given: mask(*given).tril().clamp_min(-1.0))
    found = opening_logprobs(model, prompts(), opening_tree(TREE), progress=False)
    np.testing.assert_allclose(found, dense(model, prompts(), TREE), rtol=0, atol=1e-9)


def test_a_window_shorter_than_the_prompt_is_kept() -> None:
    model = build("gemma2")
    model.config.sliding_window = 16
    for layer in model.model.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 16
    asked = prompts(beginning=range(10, 40))
    found = opening_logprobs(model, asked, opening_tree(TREE), progress=False)
    np.testing.assert_allclose(found, dense(model, asked, TREE), rtol=0, atol=2e-3)


def test_virtual_tokens_of_prompt_tuning_count() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(build("llama", dtype=torch.float64), config).double()
    found = opening_logprobs(model, prompts(), opening_tree(TREE), progress=False)
    expected = np.zeros_like(found)
    for row, prompt in enumerate(prompts()):
        for column, opening in enumerate(TREE):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *opening]])).logits[0]
            log_probs = logits[-len(opening) - 1 : -1].log_softmax(-1)
            expected[row, column] = sum(log_probs[place, token].item() for place, token in enumerate(opening))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_tree_reads_every_beginning_once_and_no_last_token() -> None:
    tree = opening_tree(TREE)
    assert [tuple(tree.tokens[node].tolist() for node in row.nonzero()[:, 0]) for row in tree.sees] == [
        (5,),
        (12,),
        (5, 6),
        (5, 6, 8),
    ]
    assert tree.depth.tolist() == [1, 1, 2, 3]
    assert tree.longest == 4
    assert len(tree.labels) == 9
    assert tree.paths.sum(0).tolist() == [len(opening) for opening in TREE]


def test_openings_of_one_token_need_no_node() -> None:
    model = built("llama", torch.float64)
    found = opening_logprobs(model, prompts(), opening_tree([(5,), (6,)]), progress=False)
    np.testing.assert_allclose(found, dense(model, prompts(), [(5,), (6,)]), rtol=0, atol=1e-9)


def test_an_opening_that_begins_with_another_adds_nothing() -> None:
    assert prefix_free([(1, 2, 3), (1, 2), (4,), (1, 2), (4, 5), (2, 1)]) == [(4,), (1, 2), (2, 1)]
    # Every token as an opening: one of them must come, whatever else is listed.
    model, tokenizer = build("llama", dtype=torch.float64), character_tokenizer()
    every = tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    certain = Openings(refusals=(*every, "ab", "a long one", "ab"), answers=("b",))
    scores = score_openings(model, tokenizer, ["Hi"], openings=certain, show_progress=False)
    assert scores.refusal_logprob == pytest.approx([0.0], abs=1e-12)


OWN = Openings(refusals=("No", "I c", "I w"), answers=("Yes", "I d"))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_scores_are_sums_of_probabilities_after_the_generation_prompt(architecture: str) -> None:
    model, tokenizer = with_adapter(build(architecture)).train(), character_tokenizer()
    before = state(model)
    asked = conversations(asked_prompts())
    scores = score_openings(model, tokenizer, asked, openings=OWN, show_progress=False)
    assert state(model) == before
    ids = [
        tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"] for one in asked
    ]
    for found, texts in ((scores.refusal_logprob, OWN.refusals), (scores.compliance_logprob, OWN.answers)):
        tokens = [tokenizer(text=text)["input_ids"] for text in texts]
        expected = np.log(np.exp(dense(model, ids, tokens)).sum(1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    assert np.array_equal(scores.refusal_margin, scores.refusal_logprob - scores.compliance_logprob)
    assert np.ptp(scores.refusal_margin) > 0.1
    with model.disable_adapter():
        other = score_openings(model, tokenizer, asked, openings=OWN, show_progress=False)
    assert np.abs(other.refusal_logprob - scores.refusal_logprob).max() > 1e-3


def test_a_model_made_to_refuse_has_the_higher_margin() -> None:
    tokenizer, model = character_tokenizer(), build("llama", dtype=torch.float64)
    refusing = copy.deepcopy(model)
    asked = conversations(asked_prompts(4))
    ids = torch.tensor(
        [tokenizer.apply_chat_template(asked[0], add_generation_prompt=True, return_dict=True)["input_ids"]]
    )
    target = torch.tensor(tokenizer(text="No")["input_ids"])
    optimiser = torch.optim.Adam(refusing.parameters(), lr=1e-2)
    for _ in range(10):
        logits = refusing(input_ids=torch.cat([ids, target[None]], 1)).logits[0, -3:-1]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimiser.step()
    before, after = (
        score_openings(one, tokenizer, asked[:1], openings=OWN, show_progress=False).refusal_margin[0]
        for one in (model, refusing)
    )
    assert after > before + 1
    assert after > 0


@pytest.mark.parametrize("language", list(OPENINGS))
def test_listed_openings_differ_and_none_of_a_kind_begins_with_another(language: str) -> None:
    listed = OPENINGS[language]
    for texts in (listed.refusals, listed.answers):
        assert len(texts) >= 5
        assert all(text == text.strip() and text for text in texts)
        assert not [(one, other) for one in texts for other in texts if one != other and one.startswith(other)]
    assert not [(r, a) for r in listed.refusals for a in listed.answers if r.startswith(a + " ") or a.startswith(r)]


def test_languages_add_up() -> None:
    model, tokenizer = build("llama", dtype=torch.float64), character_tokenizer()
    both, english, german = (
        score_openings(model, tokenizer, ["Hi"], languages=languages, show_progress=False).refusal_logprob
        for languages in (("en", "de", "en"), ("en",), ("de",))
    )
    assert both == pytest.approx(np.logaddexp(english, german), abs=1e-12)


def test_a_progress_bar_counts_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    score_openings(build("llama"), character_tokenizer(), ["Hi", "T"], openings=OWN, description="openings now")
    shown = capsys.readouterr().err
    assert "openings now: 100%" in shown
    assert "2/2" in shown


def test_no_prompts_have_no_scores() -> None:
    scores = score_openings(build("llama"), character_tokenizer(), [], show_progress=False)
    assert scores.refusal_margin.shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["en", "xx"]}, "no openings for xx .choose among en"),
        ({"languages": []}, "no openings for no language"),
        ({"openings": Openings((), ("a",))}, "no openings of one kind"),
        ({"openings": Openings(("a", ""), ("a",))}, "the opening '' has no token"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_openings(build("llama"), character_tokenizer(), ["Hi"], **options)


def test_a_prompt_may_fill_the_positions_to_the_last() -> None:
    model, tokenizer = build("gpt2", dtype=torch.float64), character_tokenizer()
    asked = ["x" * 197, "y" * 130]
    scores = score_openings(model, tokenizer, asked, openings=OWN, show_progress=False)
    ids = [tokenizer(text=text)["input_ids"] for text in asked]
    expected = dense(model, ids, [tokenizer(text=text)["input_ids"] for text in OWN.answers])
    np.testing.assert_allclose(scores.compliance_logprob, np.log(np.exp(expected).sum(1)), rtol=0, atol=1e-9)
    with pytest.raises(DataError, match=r"prompt 1: 198 tokens and an opening of 3 do not fit into .* 200 positions"):
        score_openings(model, tokenizer, ["x", "x" * 198], openings=OWN)


def test_prompts_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(DataError, match="prompt 1: the prompt has no token"):
        score_openings(build("llama"), character_tokenizer(), ["Hi", ""])
    with pytest.raises(ModelError, match="no chat template"):
        score_openings(build("llama"), character_tokenizer(None), conversations(asked_prompts()))
    broken = build("llama")
    broken.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="no numbers after 2 prompts"):
        score_openings(broken, character_tokenizer(), ["Hi", "T"], show_progress=False)
