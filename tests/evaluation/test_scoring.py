from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from loralign.data.batching import make_batch, pad_sequences
from loralign.errors import AdapterError, ConfigError, DataError, ModelError, NonFiniteError
from loralign.evaluation import PairScores, score_pairs, tokenise_pairs
from loralign.evaluation.rows import RowLogits
from tests.evaluation.models import (
    BUILDERS,
    build,
    character_tokenizer,
    conversational_pairs,
    dense_statistics,
    perturb,
    with_adapter,
)

ARRAYS = ("log_prob", "reference_log_prob", "kl_policy_reference", "kl_reference_policy")


@pytest.fixture(scope="module")
def tokenised() -> Dataset:
    return tokenise_pairs(conversational_pairs(), character_tokenizer())


def score(model: torch.nn.Module, pairs: Dataset, **options: Any) -> PairScores:
    return score_pairs(model, pairs, **{"progress": False, **options})


def dense_scores(model: torch.nn.Module, reference: torch.nn.Module | None, pairs: Dataset) -> np.ndarray:
    """``(pairs, 2, statistics)`` by float64 copies of both models."""
    double = copy.deepcopy(model).double().eval()
    other = None if reference is None else copy.deepcopy(reference).double().eval()
    return np.array(
        [
            [dense_statistics(double, other, row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids")]
            for row in pairs
        ]
    )


def found(scores: PairScores) -> np.ndarray:
    return np.stack([array for name in ARRAYS if (array := getattr(scores, name)) is not None], axis=-1)


@pytest.mark.parametrize("architecture", list(BUILDERS))
def test_scores_are_those_of_dense_float64(architecture: str, tokenised: Dataset) -> None:
    base = build(architecture)
    bare = copy.deepcopy(base)
    model = with_adapter(base, fan_in_fan_out=architecture == "gpt2")
    scores = score(model, tokenised, batch_tokens=256)
    expected = dense_scores(model, bare, tokenised)
    assert expected[..., 2:].mean() > 0.05
    np.testing.assert_allclose(found(scores), expected, rtol=2e-5, atol=1e-4)
    lengths = [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in tokenised]
    assert scores.tokens.tolist() == lengths
    assert list(scores.objectives) == tokenised["objective"][:]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_plain_heads_are_applied_to_few_rows_at_a_time(
    architecture: str, monkeypatch: pytest.MonkeyPatch, tokenised: Dataset
) -> None:
    monkeypatch.setattr("loralign.evaluation.sequence_sums._LOGITS_AT_ONCE", 8 * 100)
    model = build(architecture)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2][..., 0].numel()))
    score(model, tokenised, reference="none", batch_tokens=512)
    first, again, *later = seen
    assert first == again > 8
    assert later
    assert max(later) == 8


@pytest.mark.parametrize("architecture", ["gemma2", "granite", "cohere"])
def test_logits_that_are_worked_on_later_come_from_the_model_itself(architecture: str, tokenised: Dataset) -> None:
    model = build(architecture).eval()
    rows = RowLogits(model)
    batch = make_batch([row["prompt_ids"] + row["chosen_ids"] for row in tokenised], [3] * len(tokenised), 128, 8)
    with torch.no_grad():
        expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for _ in range(2):
            logits = rows(batch)(slice(0, 16))
            torch.testing.assert_close(logits, expected[batch.sequence[:16], batch.position[:16]])


def test_adapter_on_the_output_embedding(tokenised: Dataset) -> None:
    base = build("llama")
    bare = copy.deepcopy(base)
    model = with_adapter(base, target_modules=["q_proj", "lm_head"])
    scores = score(model, tokenised)
    np.testing.assert_allclose(found(scores), dense_scores(model, bare, tokenised), rtol=2e-5, atol=1e-4)


def test_output_embedding_trained_in_full(tokenised: Dataset) -> None:
    base = build("llama")
    bare = copy.deepcopy(base)
    model = with_adapter(base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.mul_(1.5)
    scores = score(model, tokenised)
    np.testing.assert_allclose(found(scores), dense_scores(model, bare, tokenised), rtol=2e-5, atol=1e-4)


def test_references(tokenised: Dataset) -> None:
    base = build("llama")
    bare = copy.deepcopy(base)
    model = with_adapter(base)
    model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
    perturb(model, "ref", 0.1, 7)
    frozen = copy.deepcopy(model)
    frozen.set_adapter("ref")
    expected = dense_scores(model, frozen, tokenised)
    np.testing.assert_allclose(found(score(model, tokenised, reference="ref")), expected, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(found(score(model, tokenised, reference=frozen)), expected, rtol=2e-5, atol=1e-4)
    by_module = found(score(model, tokenised, reference=bare))
    np.testing.assert_allclose(found(score(model, tokenised, reference="base")), by_module, rtol=1e-6, atol=1e-6)
    alone = score(model, tokenised, reference="none")
    assert alone.reference_log_prob is None
    assert alone.kl_policy_reference is None
    np.testing.assert_allclose(alone.log_prob, expected[..., 0], rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_adapter_is_its_own_reference_exactly(dtype: torch.dtype, tokenised: Dataset) -> None:
    scores = score(with_adapter(build("llama", dtype=dtype), std=0.0), tokenised)
    np.testing.assert_array_equal(scores.reference_log_prob, scores.log_prob)
    np.testing.assert_array_equal(scores.kl_policy_reference, np.zeros_like(scores.log_prob))
    np.testing.assert_array_equal(scores.kl_reference_policy, np.zeros_like(scores.log_prob))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_batch_size_does_not_matter(architecture: str, batch_tokens: int, tokenised: Dataset) -> None:
    model = with_adapter(build(architecture))
    expected = found(score(model, tokenised))
    np.testing.assert_allclose(
        found(score(model, tokenised, batch_tokens=batch_tokens)), expected, rtol=1e-5, atol=2e-5
    )


def test_order_does_not_matter_and_rows_follow(tokenised: Dataset) -> None:
    model = with_adapter(build("llama"))
    order = [4, 2, 9, 0]
    expected = found(score(model, tokenised))[order]
    scores = score(model, tokenised.select(order))
    np.testing.assert_allclose(found(scores), expected, rtol=1e-5, atol=2e-5)
    assert scores.rows.tolist() == order


def test_padding_on_the_left_gives_the_same(tokenised: Dataset) -> None:
    model = build("llama").eval()
    sequences = [row["prompt_ids"] + row["chosen_ids"] for row in tokenised]
    ids, mask = pad_sequences(sequences, 128, side="left")
    with torch.no_grad():
        log_probs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].double().log_softmax(-1)
    taken = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
    expected = [taken[i, -len(row["chosen_ids"]) :].sum().item() for i, row in enumerate(tokenised)]
    np.testing.assert_allclose(score(model, tokenised, reference="none").log_prob[:, 0], expected, atol=1e-4)


def test_bfloat16_is_near_float32(tokenised: Dataset) -> None:
    model = with_adapter(build("llama"), std=0.1)
    expected = score(model, tokenised)
    half = copy.deepcopy(model)
    half.get_base_model().to(torch.bfloat16)
    scores = score(half, tokenised)
    assert scores.kl_policy_reference is not None
    assert expected.kl_policy_reference is not None
    per_token = (scores.log_prob - expected.log_prob) / expected.tokens
    assert 0 < np.abs(per_token).max() < 0.05
    assert scores.kl_policy_reference.sum() == pytest.approx(expected.kl_policy_reference.sum(), rel=0.05)


def test_max_length_cuts_the_end(tokenised: Dataset) -> None:
    model = build("llama")
    short = tokenise_pairs(conversational_pairs(), character_tokenizer(), 70)
    assert any(short["truncated"])
    expected = score(model, short, reference="none")
    again = score(model, tokenised.select(short["row"]), reference="none", max_length=70)
    assert (again.tokens == expected.tokens).all()
    np.testing.assert_allclose(again.log_prob, expected.log_prob, rtol=1e-6)


def state(model: PeftModel) -> tuple[object, ...]:
    return (
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
        [(name, module.training, len(module._forward_pre_hooks)) for name, module in model.named_modules()],
        model.active_adapter,
        model.get_model_status().enabled,
        torch.is_grad_enabled(),
    )


def test_model_is_left_as_it_was_found(tokenised: Dataset) -> None:
    model = with_adapter(build("llama"))
    model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
    model.train()
    model.get_base_model().model.layers[0].eval()
    next(p for n, p in model.named_parameters() if "lora_A.default" in n).requires_grad_(False)
    before = state(model)
    score(model, tokenised)
    assert state(model) == before
    score(model, tokenised, reference="ref")
    assert state(model) == before
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"^pair 0 \(honest\): the chosen response"):
        score(model, tokenised)
    assert state(model) == before


def test_impossible_references(tokenised: Dataset) -> None:
    base = build("llama")
    with pytest.raises(ModelError, match="needs a PEFT model"):
        score(base, tokenised, reference="base")
    with pytest.raises(ModelError, match="no output embedding"):
        score(base, tokenised, reference=base.model.norm)
    with pytest.raises(AdapterError, match=r"no adapter named 'other' .*\"none\" or one of 'default'"):
        score(with_adapter(base), tokenised, reference="other")
    larger = build("llama")
    larger.resize_token_embeddings(128, mean_resizing=False)
    with pytest.raises(ConfigError, match="128 tokens"):
        score(build("llama"), tokenised, reference=larger)


def test_impossible_pairs(tokenised: Dataset) -> None:
    model = build("llama")
    with pytest.raises(DataError, match="no preference pairs"):
        score(model, tokenised.select([]), reference="none")
    rows = [{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [], "objective": "a"}]
    with pytest.raises(DataError, match="pair 0: the rejected response has no token"):
        score(model, Dataset.from_list(rows), reference="none")
    with pytest.raises(ConfigError, match="batch_tokens is 0"):
        score(model, tokenised, reference="none", batch_tokens=0)


def test_progress_bar_reaches_its_end(tokenised: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    score(build("llama"), tokenised, reference="none", progress=True, batch_tokens=128)
    last = capsys.readouterr().err.split("\r")[-1]
    found_counts = re.search(r"(\d+)/(\d+) ", last)
    assert found_counts is not None
    done, total = found_counts.groups()
    assert done == total
    assert int(total) % 32 == 0
    score(build("llama"), tokenised, reference="none", progress=False)
    assert capsys.readouterr().err == ""
