from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.lora import column_bases, column_basis, factored_inner, factored_norm, factored_svd
from tests.oracles import dense_projector


def _matrix(rows, columns, rank, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=dtype)
    return left @ torch.randn(rank, columns, generator=generator, dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(4, 30), columns=st.integers(1, 4), rank=st.integers(0, 4), seed=st.integers(0, 999))
def test_projector_is_idempotent_self_adjoint_and_rank_revealing(rows, columns, rank, seed):
    rank = min(rank, columns)
    factor = _matrix(rows, columns, rank, seed) if rank else torch.zeros(rows, columns, dtype=torch.float64)
    basis = column_basis(factor)
    projector = basis.Q @ basis.Q.mT
    assert basis.rank == rank
    torch.testing.assert_close(projector @ projector, projector, atol=1e-7, rtol=0)
    torch.testing.assert_close(projector, projector.mT)
    torch.testing.assert_close(projector, dense_projector(factor), atol=1e-7, rtol=0)
    torch.testing.assert_close((basis.Q * basis.singular_values) @ basis.rotation.mT, factor, atol=1e-6, rtol=1e-6)


def test_bases_of_mixed_ranks_come_back_in_order():
    factors = [_matrix(9, 3, 3, 1), _matrix(7, 2, 2, 2), _matrix(8, 3, 1, 3)]
    for factor, basis in zip(factors, column_bases(factors), strict=True):
        torch.testing.assert_close(basis.project(factor), factor, atol=1e-8, rtol=1e-8)


def test_tiny_direction_of_a_float32_factor_is_dropped():
    factor = torch.eye(10, 3) * torch.tensor([1.0, 1e-2, 1e-9])
    assert column_basis(factor).rank == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_factors_have_all_their_directions(dtype):
    """TRL keeps the adapter of a quantised model in bfloat16, whose epsilon times the rows is above one."""
    factor = _matrix(1536, 16, 16, 5, torch.float32).to(dtype)
    basis = column_basis(factor)
    assert basis.rank == 16
    torch.testing.assert_close(basis.Q @ basis.Q.mT, dense_projector(factor.double()).float(), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), inner=st.integers(1, 5))
def test_factored_inner_products_equal_dense_ones(seed, inner):
    one, two = (
        (_matrix(6, inner, inner, seed), _matrix(inner, 8, inner, seed + 1)),
        (
            _matrix(6, 3, 3, seed + 2),
            _matrix(3, 8, 3, seed + 3),
        ),
    )
    dense = ((one[0] @ one[1]) * (two[0] @ two[1])).sum()
    torch.testing.assert_close(factored_inner(*one, *two), dense)
    torch.testing.assert_close(factored_norm(*one), torch.linalg.matrix_norm(one[0] @ one[1]))


@pytest.mark.parametrize("oversampling", [2, 40])
def test_factored_svd_equals_the_dense_decomposition(oversampling):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(30, 12, dtype=torch.float64, generator=generator) * 2.0 ** -torch.arange(12)
    right = torch.randn(12, 40, dtype=torch.float64, generator=generator)
    result = factored_svd(left, right, 4, oversampling=oversampling, iterations=4, generator=generator)
    values = torch.linalg.svdvals(left @ right)
    torch.testing.assert_close(result.S, values[:4], rtol=1e-6, atol=0)
    low_rank = (result.U * result.S) @ result.V.mT
    error = torch.linalg.matrix_norm(left @ right - low_rank)
    torch.testing.assert_close(error, torch.linalg.vector_norm(values[4:]), rtol=1e-5, atol=0)


def test_factored_svd_depends_on_the_seed_alone_and_fixes_signs():
    left, right = _matrix(20, 9, 9, 1), _matrix(9, 25, 9, 2)
    runs = [factored_svd(left, right, 3, oversampling=1, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(runs[0].U, runs[1].U)
    flipped = factored_svd(-left, -right, 3, generator=torch.Generator().manual_seed(4))
    peaks = flipped.V.gather(0, flipped.V.abs().argmax(dim=0, keepdim=True))
    assert (peaks > 0).all()
