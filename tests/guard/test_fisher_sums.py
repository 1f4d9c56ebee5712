from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.guard.accumulator import FisherSums, TokenGrams
from loralign.guard.products import bfloat16_values


def _tokens(rows, tokens, m, n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, n, generator=generator, dtype=torch.float64)
    g = torch.randn(rows, tokens, m, generator=generator, dtype=torch.float64)
    return x.to(dtype), g.to(dtype)


def _sums(m, n, test=None, dtype=torch.float64, **options):
    return FisherSums(m, n, test, dtype=dtype, device=torch.device("cpu"), **options)


def _dense(x, g):
    gradients = g.mT @ x
    return gradients @ gradients.mT


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    tokens=st.integers(1, 30),
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    width=st.integers(0, 12),
    split=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_sums_are_those_of_dense_gradients_whichever_way_is_cheaper(rows, tokens, m, n, width, split, seed):
    x, g = _tokens(rows, tokens, m, n, seed)
    split = min(split, rows)
    test = torch.randn(m, width, dtype=torch.float64) if width else None
    sums = _sums(m, n, test)
    grams = TokenGrams()
    sums.add(x, g, split, grams)
    sums.add(2 * x, g, split, grams)
    dense = 5 * _dense(x, g)
    for half, part in ((0, slice(0, split)), (1, slice(split, None)), (None, slice(0, None))):
        want = dense[part].sum(dim=0)
        trace = float(want.trace())
        squares = sums.squares.sum() if half is None else sums.squares[half]
        assert float(squares) == pytest.approx(trace, rel=1e-10, abs=1e-10)
        want = want if test is None else want @ test
        torch.testing.assert_close(sums.total(half), want, rtol=1e-9, atol=1e-9 * max(1.0, trace))


@pytest.mark.parametrize("width", [0, 8])
def test_both_ways_are_taken_and_wide_layers_go_in_blocks(width):
    for tokens, grams_used in ((3, True), (900, False)):
        x, g = _tokens(2, tokens, 700, 600, 0)
        test = torch.randn(700, width, dtype=torch.float64) if width else None
        sums, grams = _sums(700, 600, test), TokenGrams()
        sums.add(x, g, 1, grams)
        assert (grams._gram is not None) == grams_used
        want = _dense(x, g).sum(dim=0)
        torch.testing.assert_close(sums.total(), want if test is None else want @ test)
        assert float(sums.squares.sum()) == pytest.approx(float(want.trace()))


def test_gram_matrices_are_computed_once_for_one_input():
    grams, x = TokenGrams(), torch.randn(2, 3, 4)
    first = grams.of(x)
    assert grams.of(x) is first
    assert grams.of(x.clone()) is not first
    torch.testing.assert_close(first, x @ x.mT)
    grams.clear()
    assert grams._x is None


def test_a_later_pass_leaves_traces_and_whole_matrices_alone():
    x, g = _tokens(3, 5, 8, 6, 1)
    whole, sketch = _sums(8, 6), _sums(8, 6, torch.randn(8, 4, dtype=torch.float64))
    for sums in (whole, sketch):
        sums.add(x, g, 2, TokenGrams())
    squares, matrix, found = sketch.squares.clone(), whole.total(), sketch.total()
    for sums in (whole, sketch):
        sums.next_pass()
        sums.add(x, g, 2, TokenGrams())
    assert torch.equal(whole.total(), matrix)
    assert whole.buffers() == []
    assert torch.equal(sketch.squares, squares)
    # The new test matrix is an orthonormal basis of what was found.
    torch.testing.assert_close(sketch.test.mT @ sketch.test, torch.eye(4).double())
    torch.testing.assert_close(sketch.test @ (sketch.test.mT @ found), found)
    torch.testing.assert_close(sketch.total(), matrix @ sketch.test)


@pytest.mark.parametrize("width", [0, 16])
def test_values_of_bfloat16_lose_nothing_by_its_products(width):
    x, g = (one.to(torch.bfloat16).double() for one in _tokens(2, 40, 300, 200, 2))
    test = torch.randn(300, width).to(torch.bfloat16).double() if width else None
    want = _sums(300, 200, test)
    want.add(x, g, 1, TokenGrams())
    narrow = _sums(300, 200, None if test is None else test.float(), torch.float32, from_bfloat16=True)
    narrow.add(x.float(), g.float(), 1, TokenGrams())
    scale = float(want.total().abs().max())
    torch.testing.assert_close(narrow.total().double(), want.total(), rtol=0, atol=2e-6 * scale)
    torch.testing.assert_close(narrow.squares, want.squares, rtol=2e-6, atol=0)


def test_the_precision_of_products_is_that_of_before_afterwards():
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    with pytest.raises(ZeroDivisionError), bfloat16_values(torch.device("cpu")):
        raise ZeroDivisionError
    assert backend.fp32_precision == before
    with bfloat16_values(torch.device("cpu"), promised=False):
        assert backend.fp32_precision == before
    with bfloat16_values(torch.device("meta")):
        assert backend.fp32_precision == before
