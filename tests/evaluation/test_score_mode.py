from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from loralign.data.completions import tokenise_completions
from loralign.errors import AdapterError, ConfigError, DataError, ModelError, NonFiniteError
from loralign.evaluation import score_pairs, tokenise_pairs
from loralign.evaluation.parquet import write_columns
from loralign.evaluation.refusal_openings import Openings, score_openings
from loralign.evaluation.responding import conversations
from loralign.evaluation.score_mode import FIXED_RESPONSES, response_divergences, score_prompts
from loralign.evaluation.sequence_sums import sequence_sums
from loralign.guard import ProbeSet
from tests.evaluation.models import build, character_tokenizer, conversational_pairs, dense_statistics, with_adapter
from tests.evaluation.prompts import asked_prompts
from tests.evaluation.test_scoring import state

OWN = Openings(refusals=("No", "I c"), answers=("Yes",))
PROMPTS = asked_prompts(6)
RESPONSES = ["Fine.", "Well, " * 9, "", "No", "I cannot.", "x" * 40]


def rows() -> list[dict[str, object]]:
    return [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": response}]}
        for prompt, response in zip(conversations(PROMPTS), RESPONSES, strict=True)
    ]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2"])
def test_divergences_are_those_of_dense_float64(architecture: str) -> None:
    base, tokenizer = build(architecture), character_tokenizer()
    bare = copy.deepcopy(base)
    model = with_adapter(base, fan_in_fan_out=architecture == "gpt2").train()
    before = state(model)
    found = response_divergences(
        model, tokenizer, conversations(PROMPTS), RESPONSES, batch_tokens=200, show_progress=False
    )
    assert state(model) == before
    double, reference = copy.deepcopy(model).double().eval(), bare.double().eval()
    for value, completion in zip(found, tokenise_completions(rows(), tokenizer), strict=True):
        prompt, response = completion.ids[: completion.prompt_length], completion.ids[completion.prompt_length :]
        assert len(response) == completion.response_length
        expected = dense_statistics(double, reference, prompt, response)[3] / len(response)
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert np.ptp(found) > 1e-4


def test_divergences_are_those_of_the_probe_set() -> None:
    tokenizer, model = character_tokenizer(), with_adapter(build("llama", dtype=torch.float64)).double()
    probe = ProbeSet(tokenise_completions(rows(), tokenizer))
    with model.disable_adapter():
        probe.cache(model)
    expected = probe.measure(model).per_sample_kl.numpy()
    found = response_divergences(model, tokenizer, conversations(PROMPTS), RESPONSES, show_progress=False)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_model_of_its_own_may_be_the_baseline() -> None:
    tokenizer, base = character_tokenizer(), build("llama")
    other = copy.deepcopy(base)
    # Another output embedding too, as a whole model that was tuned by another tool has.
    torch.nn.init.normal_(other.lm_head.weight, std=0.3)
    asked = conversations(PROMPTS)
    found = response_divergences(base, tokenizer, asked, RESPONSES, other, show_progress=False)
    back = response_divergences(other, tokenizer, asked, RESPONSES, base, show_progress=False)
    assert (found > 0.1).all()
    assert np.abs(found - back).min() > 1e-3
    same = response_divergences(base, tokenizer, asked, RESPONSES, copy.deepcopy(base), show_progress=False)
    assert (same == 0).all()


def test_sums_are_those_of_the_scores_of_pairs() -> None:
    tokenizer, model = character_tokenizer(), with_adapter(build("qwen3"))
    pairs = tokenise_pairs(conversational_pairs(), tokenizer)
    scores = score_pairs(model, pairs, batch_tokens=256, progress=False)
    sequences = [row["prompt_ids"] + row[side] for row in pairs for side in ("chosen_ids", "rejected_ids")]
    lengths = [len(row["prompt_ids"]) for row in pairs for _ in range(2)]
    sums = sequence_sums(model, sequences, lengths, reference="base", batch_tokens=256, progress=False)
    for row, name in enumerate(("log_prob", "reference_log_prob", "kl_policy_reference", "kl_reference_policy")):
        assert np.array_equal(sums[row], getattr(scores, name).ravel())


def test_the_table_holds_what_both_parts_measure() -> None:
    tokenizer, model = character_tokenizer(), with_adapter(build("llama"))
    columns = score_prompts(model, tokenizer, PROMPTS, baseline="base", openings=OWN, show_progress=False)
    assert list(columns) == [
        "id",
        "label",
        "category",
        "refusal_logprob",
        "compliance_logprob",
        "refusal_margin",
        "kl",
    ]
    asked = conversations(PROMPTS)
    scores = score_openings(model, tokenizer, asked, openings=OWN, show_progress=False)
    assert columns["id"] == [prompt.id for prompt in PROMPTS]
    assert columns["label"] == ["safe", "unsafe"] * 3
    assert columns["refusal_margin"] == scores.refusal_margin.tolist()
    fixed = [FIXED_RESPONSES[prompt.label] for prompt in PROMPTS]
    assert columns["kl"] == response_divergences(model, tokenizer, asked, fixed, show_progress=False).tolist()
    given = score_prompts(
        model, tokenizer, PROMPTS, baseline="base", responses=RESPONSES, openings=OWN, show_progress=False
    )
    assert given["kl"] == response_divergences(model, tokenizer, asked, RESPONSES, show_progress=False).tolist()
    assert given["kl"] != columns["kl"]


def test_without_a_baseline_there_is_no_divergence_and_the_table_can_be_written(tmp_path) -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    columns = score_prompts(model, tokenizer, PROMPTS, openings=OWN, show_progress=False)
    assert "kl" not in columns
    write_columns(tmp_path / "responses.parquet", columns)
    table = pq.read_table(tmp_path / "responses.parquet")
    assert table.to_pydict() == columns


def test_baselines_that_do_not_fit_are_refused() -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    asked = conversations(PROMPTS)
    wide = copy.deepcopy(model)
    wide.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    with pytest.raises(ConfigError, match="the reference has 105 tokens and the model 100"):
        response_divergences(model, tokenizer, asked, RESPONSES, wide, show_progress=False)
    with pytest.raises(ModelError, match="needs a PEFT model"):
        response_divergences(model, tokenizer, asked, RESPONSES, show_progress=False)
    with pytest.raises(AdapterError, match="no adapter named 'other'"):
        response_divergences(with_adapter(model), tokenizer, asked, RESPONSES, "other", show_progress=False)


def test_responses_that_cannot_be_measured_are_refused() -> None:
    tokenizer, model = character_tokenizer(), with_adapter(build("llama"))
    asked = conversations(PROMPTS)
    with pytest.raises(DataError, match="5 responses for 6 prompts"):
        response_divergences(model, tokenizer, asked, RESPONSES[:5])
    with pytest.raises(
        DataError, match=r"prompt 3: prompt and response are .* tokens, and the model has 256 positions"
    ):
        response_divergences(model, tokenizer, asked, [*RESPONSES[:3], "x" * 250, *RESPONSES[4:]])
    model.get_base_model().lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="divergence on 6 responses"):
        response_divergences(model, tokenizer, asked, RESPONSES, show_progress=False)


def test_a_response_that_the_template_leaves_out_is_refused() -> None:
    silent = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    model = with_adapter(build("llama"))
    prompts = conversations([replace(PROMPTS[0], prompt="Hi")])
    with pytest.raises(DataError, match="response"):
        response_divergences(model, character_tokenizer(silent), prompts, ["Fine."], show_progress=False)
