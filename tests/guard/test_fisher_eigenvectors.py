from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.guard import nystrom
from loralign.guard.fisher_options import FisherOptions
from loralign.guard.layer_subspace import mean_squared_cosine
from loralign.guard.nystrom import gaussian_test_matrix, leading_eigenvectors, leading_eigenvectors_of_many
from loralign.guard.selection import choose_rank


def _matrix(m, values, seed=0):
    """Positive semi-definite ``(m, m)`` with the given non-zero eigenvalues, and their eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(m, len(values), generator=generator, dtype=torch.float64)).Q
    return frame * torch.tensor(values, dtype=torch.float64) @ frame.mT, frame


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(2, 40), rank=st.integers(1, 10), extra=st.integers(0, 5), seed=st.integers(0, 2**16), data=st.data()
)
def test_nystrom_is_exact_where_the_rank_is_within_the_sketch(m, rank, extra, seed, data):
    rank = min(rank, m)
    values = sorted((data.draw(st.floats(0.01, 10)) for _ in range(rank)), reverse=True)
    matrix, frame = _matrix(m, values, seed)
    test = gaussian_test_matrix(m, min(rank + extra, m), seed).double()
    vectors, found = leading_eigenvectors(matrix @ test, test, m)
    assert len(found) == rank
    torch.testing.assert_close(found, torch.tensor(values).double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(vectors * found @ vectors.mT, matrix, rtol=0, atol=1e-6 * values[0])
    assert mean_squared_cosine(vectors, frame) == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), width=st.integers(2, 20))
def test_nystrom_never_exceeds_the_matrix(seed, width):
    matrix, _ = _matrix(30, [1.0 / (i + 1) for i in range(30)], seed)
    test = gaussian_test_matrix(30, width, seed).double()
    vectors, values = leading_eigenvectors(matrix @ test, test, 30)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(len(values)).double(), rtol=0, atol=1e-8)
    assert torch.linalg.eigvalsh(matrix - vectors * values @ vectors.mT).min() > -1e-9


def test_float32_sketches_of_deficient_rank_give_no_spurious_directions():
    for seed in range(20):
        matrix, frame = _matrix(60, [4.0, 2.0, 1.0], seed)
        test = gaussian_test_matrix(60, 12, seed)
        vectors, values = leading_eigenvectors(matrix.float() @ test, test, 12)
        assert len(values) == 3
        assert values == pytest.approx([4.0, 2.0, 1.0], rel=1e-4)
        assert mean_squared_cosine(vectors, frame) > 1 - 1e-6


def test_a_sketch_that_rounding_made_indefinite_is_still_read():
    test = gaussian_test_matrix(20, 6, 0)
    noise = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    matrix, frame = _matrix(20, [1.0, 0.5])
    vectors, values = leading_eigenvectors(matrix.float() @ test + 1e-3 * noise, test, 2)
    assert values == pytest.approx([1.0, 0.5], rel=0.05)
    assert mean_squared_cosine(vectors, frame) > 0.99


@pytest.mark.parametrize("count", [4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sketched", [True, False])
def test_many_layers_together_are_what_each_is_alone(sketched, dtype, count):
    """Of full and of low rank, one all zeros, and one whose sketch rounding has made indefinite."""
    spectra = [[2.0 / (i + 1) for i in range(20)], [4.0, 2.0, 1.0], [3.0, 3e-3], [1.0, 0.5]]
    whole = torch.stack([*(_matrix(20, one, seed)[0] for seed, one in enumerate(spectra)), torch.zeros(20, 20)])
    tests = torch.stack([gaussian_test_matrix(20, 12, seed) for seed in range(len(whole))]).to(dtype)
    moments = (whole.to(dtype) @ tests) if sketched else whole.to(dtype)
    if sketched:
        noise = torch.randn(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        moments[3] += 1e-3 * noise.to(dtype)
    found = leading_eigenvectors_of_many(moments, tests if sketched else None, count)
    for row, (vectors, values) in enumerate(found):
        expected, own = leading_eigenvectors(moments[row], tests[row] if sketched else None, count)
        assert vectors.shape == expected.shape
        torch.testing.assert_close(values, own, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6)
    assert [len(values) for _, values in found[1:3]] == [3, 2]
    assert len(found[4][1]) == 0


@pytest.mark.parametrize("test", [None, gaussian_test_matrix(9, 3, 0)])
def test_a_zero_matrix_has_no_directions(test):
    vectors, values = leading_eigenvectors(torch.zeros(9, 9 if test is None else 3), test, 4)
    assert vectors.shape == (9, 0)
    assert values.shape == (0,)


def test_the_iteration_for_wide_matrices_equals_a_complete_decomposition(monkeypatch):
    monkeypatch.setattr(nystrom, "_COMPLETE", 64)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        values = [2.0 / (1 + i) ** 0.7 for i in range(200)]
        matrix, frame = _matrix(200, values)
        vectors, found = leading_eigenvectors(matrix.to(dtype), None, 10)
        torch.testing.assert_close(found, torch.tensor(values[:10], dtype=torch.float64), rtol=tolerance, atol=0)
        assert mean_squared_cosine(vectors, frame[:, :10]) == pytest.approx(1.0, abs=tolerance)
    flat, _ = _matrix(200, [1.0] * 200)
    assert leading_eigenvectors(flat, None, 10)[1] == pytest.approx([1.0] * 10)


def test_an_iteration_that_does_not_settle_is_replaced_by_a_complete_decomposition():
    matrix, _ = _matrix(40, [1.0 - 0.01 * i for i in range(40)])
    values, vectors = nystrom._krylov(matrix, 3, tolerance=0.0, restarts=2)
    assert vectors.shape == (40, 40)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix).flip(0))


def test_test_matrices_are_orthonormal_and_of_bfloat16_values():
    test = gaussian_test_matrix(50, 8, 3)
    torch.testing.assert_close(test.mT @ test, torch.eye(8), rtol=0, atol=0.01)
    assert torch.equal(test.to(torch.bfloat16).float(), test)
    assert torch.equal(test, gaussian_test_matrix(50, 8, 3))
    assert not torch.equal(test, gaussian_test_matrix(50, 8, 4))


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"energy": 0.5, "min_rank": 1}, 1),
        ({"energy": 0.51, "min_rank": 1}, 2),
        ({"energy": 0.8, "min_rank": 1}, 3),
        ({"energy": 0.5, "min_rank": 2}, 2),
        ({"energy": 1.0, "min_rank": 1}, 4),
        ({"energy": 0.9, "min_rank": 1, "max_rank": 2}, 2),
        ({"rank": 3}, 3),
        ({"rank": 9}, 4),
    ],
)
def test_the_smallest_rank_that_reaches_the_energy(options, rank):
    assert choose_rank(torch.tensor([5.0, 2.0, 1.0, 0.5]), 10.0, FisherOptions(**options)) == rank


def test_narrow_layers_are_summed_exactly_under_auto():
    options = FisherOptions(max_rank=16, oversampling=16)
    assert [options.sketch_width(rows) for rows in (20, 64, 65, 500)] == [None, None, 32, 32]
    assert FisherOptions(method="exact").sketch_width(5000) is None
    assert FisherOptions().sketch_width(1536) == 64 + 64
    assert FisherOptions(method="sketched").sketch_width(1536) == 64 + 128
    assert [FisherOptions(method=method).sketch_passes for method in ("auto", "sketched")] == [1, 2]
    assert FisherOptions(method="sketched", passes=1).sketch_passes == 1
    forced = FisherOptions(method="sketched", rank=8, oversampling=8)
    assert [forced.sketch_width(rows) for rows in (15, 16, 17)] == [None, None, 16]
