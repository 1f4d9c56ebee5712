from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loralign.evaluation.divergence import token_statistics


def both(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = token_statistics(logits, labels, reference)
    assert found.kl_policy_reference is not None
    assert found.kl_reference_policy is not None
    return found.kl_policy_reference, found.kl_reference_policy


def dense(logits: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    p, q = logits.double().log_softmax(-1), reference.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)


def draw(seed: int, scale: float, change: float, rows: int = 5, vocabulary: int = 997) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * scale
    reference = logits + torch.randn(rows, vocabulary, generator=generator) * change
    return logits, reference, torch.randint(vocabulary, (rows,), generator=generator)


@given(st.integers(0, 10**6), st.floats(0.1, 20), st.floats(0, 5))
def test_divergences_are_not_negative_and_agree_with_float64(seed: int, scale: float, change: float) -> None:
    logits, reference, labels = draw(seed, scale, change)
    for found, expected in zip(both(logits, labels, reference), dense(logits, reference), strict=True):
        assert found.min() >= 0
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    expected = logits.double().log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(token_statistics(logits, labels).log_prob.double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_equal_distributions_have_no_divergence(seed: int, dtype: torch.dtype) -> None:
    logits, _, labels = draw(seed, 8.0, 0.0)
    found = token_statistics(logits.to(dtype), labels, logits.to(dtype))
    zero = torch.zeros_like(found.log_prob)
    torch.testing.assert_close(tuple(found), (found.log_prob, found.log_prob, zero, zero), rtol=0, atol=0)


def test_small_divergences_survive_float32() -> None:
    # Σ p (log p − log q) alone is off by some 1e-7 here, the size of the divergence itself.
    logits, reference, labels = draw(3, 2.0, 5e-4, rows=200, vocabulary=5000)
    forward, _ = dense(logits, reference)
    found, _ = both(logits, labels, reference)
    assert forward.mean() < 2e-7
    assert (found.double() - forward).abs().mean() < 0.1 * forward.mean()


@pytest.mark.parametrize("shift", [100.0, -1000.0])
def test_divergence_ignores_a_common_shift(shift: float) -> None:
    logits, reference, labels = draw(0, 3.0, 1.0)
    shifted = both(logits + shift, labels, reference)
    torch.testing.assert_close(shifted, both(logits, labels, reference), rtol=1e-3, atol=1e-4)


def test_without_reference_there_is_only_the_log_probability() -> None:
    logits, _, labels = draw(0, 1.0, 0.0)
    assert token_statistics(logits, labels)[1:] == (None, None, None)
    assert token_statistics(logits.bfloat16(), labels).log_prob.dtype == torch.float32
    assert token_statistics(logits.double(), labels).log_prob.dtype == torch.float64
