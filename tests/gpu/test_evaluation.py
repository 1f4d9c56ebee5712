"""What is measured of a model on the GPU is what is measured of it on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loralign.evaluation import completion_losses, generate_answers, score_pairs, score_prompts, tokenise_pairs
from loralign.evaluation.answers import Prompt
from loralign.evaluation.response_store import AskedPrompt
from loralign.guard import ProbeSet
from tests.evaluation import models
from tests.evaluation.prompts import asked_prompts
from tests.gpu import both
from tests.training import guard_runs

pytestmark = pytest.mark.gpu
PROMPTS: list[Prompt] = ["Hi", "T", "What is this, and why " * 3, [{"role": "user", "content": "Hello there?"}], "Well"]
ARCHITECTURES = ["llama", "gemma2", "gpt2"]


def _adapted(architecture: str = "llama", std: float = 0.1, dtype: torch.dtype = torch.float32) -> Any:
    base = models.build(architecture, dtype=dtype)
    return models.with_adapter(base, std=std, fan_in_fan_out=architecture == "gpt2")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drift_on_the_probe_set_is_that_of_the_cpu(device: torch.device, architecture: str) -> None:
    found = []
    for place in (device, both.CPU):
        model = both.copied(_adapted(architecture, std=0.0), place)
        probe = ProbeSet(guard_runs.completions(9), batch_size=4, response_tokens=3)
        probe.cache(model)
        assert probe.measure(model).kl == 0
        models.perturb(model.cpu(), "default", 0.1, seed=5)
        found.append(probe.measure(model.to(place)))
    one, other = found
    assert one.kl > 1e-3
    for name in ("kl", "logprob_lost", "entropy"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-5)
    torch.testing.assert_close(one.per_sample_kl, other.per_sample_kl, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(one.per_sample_lost, other.per_sample_lost, rtol=1e-3, atol=1e-5)


def test_a_start_kept_on_one_device_is_compared_on_the_other(device: torch.device) -> None:
    model = _adapted(std=0.0)
    for first, second in ((device, both.CPU), (both.CPU, device)):
        probe = ProbeSet(guard_runs.completions(6))
        probe.cache(both.copied(model, first))
        assert probe.measure(both.copied(model, second)).kl < 1e-7


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_of_completions_are_those_of_the_cpu(device: torch.device, architecture: str) -> None:
    model, completions = _adapted(architecture), guard_runs.completions(10)
    found, expected = (completion_losses(both.copied(model, place), completions) for place in (device, both.CPU))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_tokens", [1, 150, 4096])
def test_greedy_answers_are_those_of_the_cpu(device: torch.device, architecture: str, batch_tokens: int) -> None:
    model, tokenizer = _adapted(architecture), models.character_tokenizer()
    found, expected = (
        generate_answers(
            both.copied(model, place),
            tokenizer,
            PROMPTS,
            max_new_tokens=10,
            batch_tokens=batch_tokens,
            show_progress=False,
        )
        for place in (device, both.CPU)
    )
    assert found == expected
    assert len(set(found)) > 2


def test_sampled_answers_depend_on_the_seed_alone(device: torch.device) -> None:
    model, tokenizer = both.copied(_adapted(), device), models.character_tokenizer()
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "show_progress": False}

    def generator() -> torch.Tensor:
        return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)

    before = generator()
    first, again, other = (generate_answers(model, tokenizer, PROMPTS, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(generator(), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_of_pairs_are_those_of_the_cpu(device: torch.device, architecture: str) -> None:
    pairs = tokenise_pairs(models.conversational_pairs(), models.character_tokenizer())
    model = _adapted(architecture)
    found, expected = (
        score_pairs(both.copied(model, place), pairs, batch_tokens=256, progress=False) for place in (device, both.CPU)
    )
    for name in ("log_prob", "reference_log_prob", "kl_policy_reference", "kl_reference_policy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-5, atol=2e-4, err_msg=name)
    assert expected.kl_policy_reference is not None
    assert expected.kl_policy_reference.mean() > 0.05


@pytest.mark.parametrize("baseline", ["base", "model"])
def test_openings_and_divergences_of_prompts_are_those_of_the_cpu(device: torch.device, baseline: str) -> None:
    model, tokenizer = _adapted(), models.character_tokenizer()
    prompts: list[AskedPrompt] = list(asked_prompts(8))
    columns = []
    for place in (device, both.CPU):
        other: Any = "base" if baseline == "base" else models.build("llama", seed=3).to(place)
        columns.append(
            score_prompts(
                both.copied(model, place), tokenizer, prompts, baseline=other, batch_tokens=600, show_progress=False
            )
        )
    found, expected = columns
    for name in ("refusal_logprob", "compliance_logprob", "refusal_margin", "kl"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-4, err_msg=name)


def test_bfloat16_models_are_measured(device: torch.device) -> None:
    """Drift that is larger than bfloat16's own rounding is seen, and a model that has not changed has none."""
    model = both.copied(_adapted(std=0.0, dtype=torch.bfloat16), device)
    probe = ProbeSet(guard_runs.completions(8))
    probe.cache(model)
    assert probe.measure(model).kl == 0
    models.perturb(model.cpu(), "default", 0.3, seed=5)
    model = model.to(device)
    assert probe.measure(model).kl > 0.01
    pairs = tokenise_pairs(models.conversational_pairs(), models.character_tokenizer())
    scores = score_pairs(model, pairs, progress=False)
    assert np.isfinite(scores.log_prob).all()
    assert len(generate_answers(model, models.character_tokenizer(), PROMPTS, show_progress=False)) == len(PROMPTS)
