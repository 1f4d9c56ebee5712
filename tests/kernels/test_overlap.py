"""One tile of the Riemannian overlap: plain torch against autograd, and the fused kernel against plain torch."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.kernels import TileBuffers, fused_is_available, overlap_fused, overlap_tile
from tests.guard.penalties.made import SCALE, random_problem

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
fused = pytest.mark.skipif(
    not (INTERPRETED or (CUDA and fused_is_available(torch.device("cuda"), torch.float32, 16))),
    reason="the fused kernel needs a CUDA GPU and Triton (or Triton's interpreter: TRITON_INTERPRET=1)",
)
DEVICE = torch.device("cuda" if CUDA and not INTERPRETED else "cpu")


def _inputs(seed, rows, width, rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return 0.1 * draw(rows, width), 0.3 * draw(2, rows, rank), draw(rank, width)


def _dense(weight, left, right, beta, tau):
    a, t = left[0] @ right, left[1] @ right
    return ((1 + beta * torch.sigmoid((weight + a + t).abs() - tau)) * (a * t).abs()).sum()


def _tile(weight, left, right, beta, tau, gradients=True):
    rows, width = weight.shape
    buffers = TileBuffers(rows * width, rows, left.shape[2], left.dtype, left.device)
    out = (torch.full_like(left, torch.nan), torch.zeros_like(right)) if gradients else (None, None)
    own = buffers.weight(rows, width).copy_(weight)
    value = overlap_tile(
        own, left, right, beta=beta, tau=tau, buffers=buffers, gradient_left=out[0], gradient_right=out[1]
    )
    return value, *out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    width=st.integers(1, 11),
    rank=st.integers(1, 5),
    beta=st.sampled_from([0.0, 0.3, 4.0, 50.0]),
    tau=st.floats(0, 2),
)
def test_value_and_gradient_of_a_tile_equal_autograd(seed, rows, width, rank, beta, tau):
    weight, left, right = _inputs(seed, rows, width, rank)
    leaves = left.clone().requires_grad_(True), right.clone().requires_grad_(True)
    expected = _dense(weight, *leaves, beta, tau)
    gradients = torch.autograd.grad(expected, leaves)
    value, by_left, by_right = _tile(weight, left, right, beta, tau)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(by_left, gradients[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_right, gradients[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(_tile(weight, left, right, beta, tau, gradients=False)[0], expected.detach())


def test_the_gradient_of_the_right_factor_is_added_and_the_inputs_are_left():
    weight, left, right = _inputs(0, 6, 7, 3)
    copies = [one.clone() for one in (left, right)]
    _, _, once = _tile(weight, left, right, 4.0, 0.01)
    buffers = TileBuffers(100, 10, 3, left.dtype, left.device)
    total = once.clone()
    overlap_tile(
        weight.clone(),
        left,
        right,
        beta=4.0,
        tau=0.01,
        buffers=buffers,
        gradient_left=torch.empty_like(left),
        gradient_right=total,
    )
    torch.testing.assert_close(total, 2 * once)
    assert torch.equal(left, copies[0])
    assert torch.equal(right, copies[1])


def test_entries_where_a_part_is_zero_have_no_gradient():
    weight, left, right = _inputs(1, 5, 6, 2)
    left[0, :2] = 0
    value, by_left, _ = _tile(weight, left, right, 4.0, 0.01)
    assert float(value) > 0
    assert not by_left[:, :2].any()
    assert by_left[:, 2:].all()


def test_a_weight_is_needed_with_beta():
    _, left, right = _inputs(2, 5, 6, 2)
    with pytest.raises(ValueError, match="weight is needed"):
        overlap_tile(None, left, right, beta=1.0, tau=0.0, buffers=TileBuffers(30, 5, 2, left.dtype, left.device))


def test_the_fused_kernel_is_for_float32_on_cuda_and_usual_ranks_alone():
    assert not fused_is_available(torch.device("cpu"), torch.float32, 16)
    assert not fused_is_available(torch.device("cuda"), torch.float64, 16)
    assert not fused_is_available(torch.device("cuda"), torch.float32, 128)


@fused
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0.0, 4.0])
@pytest.mark.parametrize(("rows", "width", "rank"), [(64, 256, 16), (70, 300, 5), (3, 17, 1), (130, 65, 33)])
def test_the_fused_kernel_equals_plain_torch(rows, width, rank, beta, dtype):
    weight, left, right = (one.to(DEVICE) for one in _inputs(rows, rows, width, rank, torch.float32))
    weight = weight.to(dtype)
    value, by_left, by_right = _tile(weight.float(), left, right, beta, 0.01)
    left_out, right_out = torch.full_like(left, torch.nan), torch.ones_like(right)
    base = weight if beta else None
    found = overlap_fused(base, left, right, beta=beta, tau=0.01, gradient_left=left_out, gradient_right=right_out)
    torch.testing.assert_close(found.float(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left_out, by_left, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(right_out - 1, by_right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(overlap_fused(base, left, right, beta=beta, tau=0.01), found)


@fused
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_fused_kernel_reads_a_transposed_weight_and_repeats_itself():
    weight, left, right = (one.to(DEVICE) for one in _inputs(9, 80, 90, 4, torch.float32))
    transposed = weight.mT.contiguous().mT
    results = []
    for base in (weight, transposed):
        by_left, by_right = torch.empty_like(left), torch.zeros_like(right)
        value = overlap_fused(
            base, left[:, :80], right, beta=4.0, tau=0.01, gradient_left=by_left, gradient_right=by_right
        )
        results.append((value, by_left, by_right))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@fused
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_penalty_is_the_same_with_the_fused_kernel(monkeypatch):
    layers, subspaces, _ = random_problem(0, dtype=torch.float32)
    for layer in layers:
        for module in (layer.down, layer.up, layer.base):
            module.to(DEVICE)
    results = []
    for here in (False, True):
        monkeypatch.setattr("loralign.guard.penalties.overlap.fused_is_available", lambda *_, here=here: here)
        penalty = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(row_fraction=0.5, tile_rows=4))
        results.append(penalty.evaluate(PenaltyWeights(0, 0, 1)))
    assert results[1].overlap == pytest.approx(results[0].overlap, rel=1e-5)
    for one, other in zip(results[0].gradients, results[1].gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
