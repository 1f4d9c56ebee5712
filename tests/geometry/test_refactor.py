from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.geometry.refactor import refactor


def _factors(seed, rows=11, columns=13, rank=4, decay=0.5):
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(rows, rank, generator=generator).double() * decay ** torch.arange(rank)
    return torch.randn(rank, columns, generator=generator).double(), B


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.sampled_from(["balanced", "rows"]), zero=st.integers(0, 4))
def test_conditioning_keeps_the_function_and_the_subspace(seed, scale, zero):
    A, B = _factors(seed)
    B[:, 4 - zero :] = 0
    change = refactor(A, B, scale=scale)
    torch.testing.assert_close(change.B @ change.A, B @ A, atol=1e-12, rtol=1e-10)
    assert change.kept == 4 - zero
    assert change.dropped == pytest.approx(0, abs=1e-20)
    assert change.rotation == pytest.approx(0, abs=1e-9)
    assert torch.linalg.matrix_rank(change.A) == 4
    torch.testing.assert_close(change.spectrum, torch.linalg.svdvals(B @ A)[:4], atol=1e-10, rtol=1e-8)


def test_balanced_factors_share_the_spectrum_and_have_orthogonal_directions():
    A, B = _factors(0)
    change = refactor(A, B)
    torch.testing.assert_close(change.A @ change.A.mT, torch.diag(change.spectrum))
    torch.testing.assert_close(change.B.mT @ change.B, torch.diag(change.spectrum))
    rows = refactor(A, B, scale="rows")
    norms = rows.A.square().sum(dim=1)
    torch.testing.assert_close(norms, A.square().sum(dim=1).mean().expand(4))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), tolerance=st.sampled_from([1e-6, 1e-3, 0.05, 0.5]))
def test_function_changes_by_no_more_than_the_tolerance(seed, tolerance):
    A, B = _factors(seed, decay=0.2)
    candidates = torch.randn(5, 13, generator=torch.Generator().manual_seed(seed + 1)).double()
    change = refactor(A, B, candidates, tolerance=tolerance)
    moved = torch.linalg.matrix_norm(change.B @ change.A - B @ A) / torch.linalg.matrix_norm(B @ A)
    assert float(moved) ** 2 <= tolerance + 1e-12
    assert float(moved) == pytest.approx(change.dropped**0.5, abs=1e-9)
    assert (change.B[:, change.kept :] == 0).all()


def test_new_rows_are_the_leading_candidates_outside_the_kept_ones():
    A, B = _factors(0)
    B[:, 2:] = 0
    generator = torch.Generator().manual_seed(3)
    candidates = torch.randn(6, 13, generator=generator).double() * 3.0 ** -torch.arange(6)[:, None]
    change = refactor(A, B, candidates)
    assert change.kept == 2
    kept = torch.linalg.svd(B @ A).Vh[:2]
    outside = candidates - candidates @ kept.mT @ kept
    leading = torch.linalg.svd(outside).Vh[:2]
    new = change.A[2:] / change.A[2:].norm(dim=1, keepdim=True)
    torch.testing.assert_close(new.mT @ new, leading.mT @ leading, atol=1e-10, rtol=0)
    shares = torch.linalg.svdvals(outside).square()[:2].sum() / candidates.square().sum()
    assert change.energy_moved == pytest.approx(float(shares))
    torch.testing.assert_close(change.A[2:].square().sum(dim=1), A.square().sum(dim=1).mean().expand(2))


def test_too_few_candidates_are_filled_up_from_the_old_rows():
    A, _ = _factors(0)
    change = refactor(A, torch.zeros(11, 4).double(), A[:1] + 0.0)
    assert torch.linalg.matrix_rank(change.A) == 4
    assert change.rotation == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.sampled_from(["balanced", "rows"]))
def test_mixing_matrices_carry_factors_and_gradients(seed, scale):
    A, B = _factors(seed)
    candidates = torch.randn(3, 13, generator=torch.Generator().manual_seed(seed)).double()
    change = refactor(A, B, candidates, tolerance=0.01, scale=scale)
    q = change.kept
    loss_gradient = torch.randn(11, 13, generator=torch.Generator().manual_seed(seed + 7)).double()
    # Gradients of a function of B A: ∇_A = BᵀG, ∇_B = G Aᵀ.
    torch.testing.assert_close(change.mix_b.mT @ (B.mT @ loss_gradient), change.B[:, :q].mT @ loss_gradient)
    torch.testing.assert_close((loss_gradient @ A.mT) @ change.mix_a.mT, loss_gradient @ change.A[:q].mT)


def test_signs_do_not_depend_on_the_representation():
    A, B = _factors(0)
    torch.testing.assert_close(refactor(-A, -B).A, refactor(A, B).A)
