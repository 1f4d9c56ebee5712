"""Values and gradients of every combination of options against autograd on the dense float64 formulas."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.guard.penalties import PenaltyOptions, PenaltyWeights
from tests.guard.penalties.made import compare_with_dense, random_problem

PROJECTIONS, GEODESICS, CURVATURES = ("hard", "soft"), ("row", "frobenius"), ("identity", "diagonal", "kronecker")
FORMS = list(itertools.product(PROJECTIONS, GEODESICS, CURVATURES))
LONE_WEIGHTS = [PenaltyWeights(*(float(i == j) for j in range(3))) for i in range(3)]


def _options(projection, geodesic, curvature, **rest) -> PenaltyOptions:
    return PenaltyOptions(projection=projection, geodesic=geodesic, task_curvature=curvature, **rest)


@pytest.fixture(autouse=True)
def _dead_form_is_asked_for():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the frobenius geodesic term is identically zero")
        yield


@pytest.mark.parametrize("beta", [0.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("projection", "geodesic", "curvature"), FORMS)
def test_every_combination(projection, geodesic, curvature, alpha, beta):
    options = _options(projection, geodesic, curvature, alpha=alpha, beta=beta, tile_rows=5)
    compare_with_dense(*random_problem(0), options, tolerance=1e-9)


@pytest.mark.parametrize("weights", LONE_WEIGHTS, ids=["alignment", "stability", "collision"])
@pytest.mark.parametrize(("projection", "geodesic", "curvature"), FORMS)
def test_every_term_alone(projection, geodesic, curvature, weights):
    compare_with_dense(*random_problem(1), _options(projection, geodesic, curvature), weights, tolerance=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 10**6),
    rows=st.integers(2, 14),
    columns=st.integers(2, 14),
    rank=st.integers(1, 5),
    subspace_rank=st.integers(1, 6),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 20),
    tau=st.floats(0, 0.5),
    tile=st.integers(1, 20),
)
def test_any_shape_and_number(form, seed, rows, columns, rank, subspace_rank, alpha, beta, tau, tile):
    # A subspace of all outputs leaves no task part; see test_edges.
    shapes = ((rows, columns), (rows + 1, columns), (rows, columns), (columns + 1, rows))
    problem = random_problem(seed, shapes, rank, min(subspace_rank, rows - 1, columns))
    compare_with_dense(*problem, _options(*form, alpha=alpha, beta=beta, tau=tau, tile_rows=tile))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4))
def test_any_pattern_of_signs(seed, signs):
    """Parts that agree and disagree in sign, and weights of both signs that the update adds to or takes from."""
    layers, subspaces, curvature = random_problem(seed)
    with torch.no_grad():
        for layer in layers:
            layer.A.abs_().mul_(signs[0])
            layer.B[::2].abs_().mul_(signs[1])
            layer.B[1::2].abs_().mul_(signs[2])
            layer.base.weight.abs_().mul_(signs[3])
    for projection in PROJECTIONS:
        compare_with_dense(layers, subspaces, curvature, _options(projection, "row", "identity"), tolerance=1e-9)


@pytest.mark.parametrize(("projection", "geodesic", "curvature"), FORMS)
def test_float32_factors_lose_only_their_own_rounding(projection, geodesic, curvature):
    problem = random_problem(2, shapes=((40, 30), (30, 40)), rank=4, subspace_rank=8, dtype=torch.float32)
    result = compare_with_dense(*problem, _options(projection, geodesic, curvature), tolerance=3e-6)
    assert all(one.dtype == torch.float32 for pair in result.gradients for one in pair)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_are_computed_with_in_float32(dtype):
    layers, subspaces, curvature = random_problem(3, dtype=dtype)
    result = compare_with_dense(layers, subspaces, curvature, PenaltyOptions(), tolerance=3e-6)
    assert all(one.dtype == torch.float32 for pair in result.gradients for one in pair)


def test_layers_without_subspace_or_curvature():
    """P_A = 0: the stability term sees the whole update, in the metric of the identity, the other terms nothing."""
    layers, subspaces, curvature = random_problem(4)
    options = _options("soft", "row", "kronecker")
    result = compare_with_dense(layers, [subspaces[0], None, None], [None, curvature[1], None], options)
    assert result.layer_energy[1:, 0].tolist() == [0, 0]
    assert result.layer_cosine[1:].tolist() == [0, 0]


def test_no_layer_has_a_subspace():
    layers, _, curvature = random_problem(5)
    result = compare_with_dense(layers, [None] * 3, curvature, PenaltyOptions())
    assert result.alignment == result.overlap == result.geodesic == result.share == 0
    assert result.stability > 0


def test_a_curvature_of_both_sides_serves_the_diagonal_form():
    layers, subspaces, curvature = random_problem(6)
    compare_with_dense(layers, subspaces, curvature, _options("hard", "row", "diagonal"))
