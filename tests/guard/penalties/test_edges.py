"""Where the update, or one of its parts, vanishes; options and arguments that cannot be; what a call leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import AdapterError, ConfigError, StateError
from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.guard.penalties.geodesic import geodesic_term
from loralign.guard.penalties.split import stack_layers
from loralign.guard.projection import project
from tests.guard.dense import DenseLayer, layer_terms
from tests.guard.penalties.made import SCALE, WEIGHTS, compare_with_dense, random_problem

FORMS = [("hard", "row"), ("soft", "row"), ("soft", "frobenius")]


@pytest.mark.parametrize(("projection", "geodesic"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_update_has_no_penalty_and_no_gradient(projection, geodesic, dtype):
    layers, subspaces, curvature = random_problem(0, dtype=dtype)
    for layer in layers:
        torch.nn.init.zeros_(layer.B)
    options = PenaltyOptions(projection=projection, geodesic=geodesic, task_curvature="kronecker")
    result = GuardPenalty(layers, subspaces, SCALE, options, curvature).evaluate(WEIGHTS)
    assert [result.alignment, result.stability, result.overlap, result.geodesic, result.total] == [0.0] * 5
    assert result.share == 0
    assert not any(bool(one.any()) for pair in result.gradients for one in pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inside", [True, False])
def test_an_update_with_one_part_only(dtype, inside):
    """Inside the subspace, or after a projection out of it: the other part is rounding, and has no angle."""
    layers, subspaces, _ = random_problem(1, dtype=dtype)
    if inside:
        with torch.no_grad():
            for layer, subspace in zip(layers, subspaces, strict=True):
                basis = subspace.basis.to(layer.B)
                layer.B.copy_(basis @ (basis.mT @ layer.B))
    else:
        project(layers, subspaces)
    result = GuardPenalty(layers, subspaces, SCALE).evaluate(PenaltyWeights(1, 1, 1))
    assert result.geodesic == 0
    assert result.layer_cosine.tolist() == [0.0] * 3
    assert result.share == pytest.approx(1.0 if inside else 0.0, abs=1e-7)
    assert all(bool(one.isfinite().all()) for pair in result.gradients for one in pair)
    # No gradient of the size of 1/‖rounding‖.
    assert max(float(one.abs().max()) for pair in result.gradients for one in pair) < 100


def test_a_subspace_of_all_outputs_leaves_nothing_to_the_task():
    layers, _, curvature = random_problem(2, shapes=((5, 8),))
    subspaces = [LayerSubspace(torch.eye(5).double(), torch.arange(5, 0, -1).double(), 15.0, 8)]
    result = compare_with_dense(layers, subspaces, curvature, PenaltyOptions(alpha=1.0))
    assert result.stability == pytest.approx(0, abs=1e-20)
    assert result.share == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 4), subspace_rank=st.integers(1, 6))
def test_frobenius_geodesic_is_identically_zero_under_the_hard_projection(seed, rank, subspace_rank):
    """By the dense formula, by the factored one, and so in the result, with its gradient."""
    options = PenaltyOptions(geodesic="frobenius", alpha=0.0)
    layers, subspaces, _ = random_problem(seed, ((12, 9),), rank, subspace_rank)
    dense = DenseLayer.of(layers[0], layers[0].base.weight, subspaces[0])
    angle = layer_terms(dense, SCALE, options)[3]
    gradients = torch.autograd.grad(angle, [dense.A, dense.B])
    assert float(angle.detach()) < 1e-28
    assert max(float(one.abs().max()) for one in gradients) < 1e-12
    (stack,) = stack_layers(layers, subspaces, [None], SCALE, options)
    with torch.no_grad():
        assert float(geodesic_term(stack.parts(), "frobenius", 1.0, None)) < 1e-28
    with pytest.warns(UserWarning, match="identically zero under the hard projection"):
        penalty = GuardPenalty(layers, subspaces, SCALE, options)
    result = penalty.evaluate(PenaltyWeights(0, 0, 1))
    assert result.geodesic == result.total == 0.0
    assert not any(bool(one.any()) for pair in result.gradients for one in pair)


@pytest.mark.parametrize(("projection", "geodesic"), FORMS)
def test_living_forms_do_not_warn(projection, geodesic):
    layers, subspaces, _ = random_problem(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(projection=projection, geodesic=geodesic))
    assert penalty.evaluate(WEIGHTS).geodesic > 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-6, 1e6), form=st.sampled_from(FORMS))
def test_geodesic_terms_lie_between_zero_and_one_and_see_no_scale(seed, factor, form):
    layers, subspaces, _ = random_problem(seed, ((12, 9), (8, 11), (10, 10)))
    penalty = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(projection=form[0], geodesic=form[1], alpha=0))
    before = penalty.evaluate(WEIGHTS).geodesic
    with torch.no_grad():
        for layer in layers:
            layer.B.mul_(factor)
    assert 0 <= before <= 1 + 1e-12
    assert penalty.evaluate(WEIGHTS).geodesic == pytest.approx(before, rel=1e-9)


def test_the_angles_gradient_grows_as_the_update_shrinks_and_an_energys_vanishes():
    """Why the angle is a mean over layers: where training begins, nothing else in the loss is as steep."""
    layers, subspaces, _ = random_problem(3, ((12, 9), (8, 11)))
    angle = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(alpha=0.0))
    weights = {"angle": PenaltyWeights(0, 0, 1), "energy": PenaltyWeights(1, 1, 0)}

    def steepness(which: str) -> torch.Tensor:
        return torch.stack([one[1].norm() for one in angle.evaluate(weights[which]).gradients])

    before = {which: steepness(which) for which in weights}
    with torch.no_grad():
        for layer in layers:
            layer.B.mul_(1e-3)
    torch.testing.assert_close(steepness("angle"), 1e3 * before["angle"], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(steepness("energy"), 1e-3 * before["energy"], rtol=1e-9, atol=0.0)


def test_row_geodesic_is_zero_for_parts_that_read_disjoint_inputs():
    layers, _, _ = random_problem(4, ((4, 6),), rank=2)
    with torch.no_grad():
        layers[0].A.copy_(torch.tensor([[1.0, 2, 0, 0, 0, 0], [0, 0, 3, 1, 0, 0]]))
        layers[0].B.copy_(torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]]))
    subspace = LayerSubspace(torch.eye(4)[:, :2].double(), torch.ones(2).double(), 2.0, 6)
    result = GuardPenalty(layers, [subspace], SCALE).evaluate(WEIGHTS)
    assert result.geodesic == 0.0
    assert result.overlap == 0.0
    assert result.share == pytest.approx(5 * 5 / (5 * 5 + 10 * 10))


def test_energies_are_those_of_the_hard_projector_and_add_up():
    layers, subspaces, _ = random_problem(5)
    results = [
        GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(projection=one)).evaluate(WEIGHTS)
        for one in ("hard", "soft")
    ]
    for result in results:
        for layer, subspace, energies in zip(layers, subspaces, result.layer_energy, strict=True):
            update = layer.scaling * layer.B @ layer.A
            aligned = subspace.basis @ (subspace.basis.mT @ update)
            assert float(energies[0]) == pytest.approx(float(aligned.square().sum().detach()))
            assert float(energies.sum()) == pytest.approx(float(update.square().sum().detach()))
    assert results[0].layer_cosine.abs().max() < 1e-12
    assert (results[1].layer_cosine > 0.01).all()


def test_overlap_is_skipped_where_nothing_weighs_it():
    layers, subspaces, _ = random_problem(6)
    # A base that cannot be read shows that it is not.
    blind = [dataclasses.replace(layer, base=torch.nn.Identity()) for layer in layers]
    assert math.isnan(GuardPenalty(blind, subspaces, SCALE).evaluate(PenaltyWeights(collision=0)).overlap)
    assert math.isnan(GuardPenalty(blind, subspaces, SCALE, PenaltyOptions(alpha=0)).evaluate(WEIGHTS).overlap)
    unweighted = GuardPenalty(blind, subspaces, SCALE, PenaltyOptions(beta=0)).evaluate(WEIGHTS)
    assert unweighted.overlap > 0
    with pytest.raises(AdapterError, match="Identity holds no weight"):
        GuardPenalty(blind, subspaces, SCALE).evaluate(WEIGHTS)


def test_values_alone_are_the_same_values():
    layers, subspaces, _ = random_problem(7)
    for beta in (0.0, 4.0):
        penalty = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(beta=beta, projection="soft"))
        one, other = penalty.evaluate(WEIGHTS), penalty.evaluate(WEIGHTS, gradients=False)
        assert other.gradients is None
        for name in ("alignment", "stability", "overlap", "geodesic", "total"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_backward_adds_to_the_gradients_of_the_parameters(dtype):
    layers, subspaces, _ = random_problem(8, dtype=dtype)
    layers[1].A.requires_grad_(False)
    layers[0].B.grad = torch.full_like(layers[0].B, 0.5)
    penalty = GuardPenalty(layers, subspaces, SCALE)
    expected = penalty.evaluate(WEIGHTS)
    result = penalty.backward(WEIGHTS, scale=3.0)
    assert result.gradients is None
    assert result.total == pytest.approx(expected.total)
    assert layers[1].A.grad is None
    for layer, (gradient_a, gradient_b) in zip(layers, expected.gradients, strict=True):
        start = 0.5 if layer is layers[0] else 0.0
        torch.testing.assert_close(layer.B.grad, (start + 3 * gradient_b).to(dtype))
        if layer.A.requires_grad:
            torch.testing.assert_close(layer.A.grad, (3 * gradient_a).to(dtype))


def test_a_backward_pass_afterwards_adds_the_loss():
    layers, subspaces, _ = random_problem(9, ((12, 9),))
    (layer,) = layers
    penalty = GuardPenalty(layers, subspaces, SCALE)
    (expected,) = penalty.evaluate(WEIGHTS).gradients
    penalty.backward(WEIGHTS)
    (layer.B @ layer.A).sum().backward()
    torch.testing.assert_close(layer.B.grad, expected[1] + layer.A.detach().sum(1).expand_as(layer.B))


def test_subspaces_are_placed_where_the_factors_are():
    """Without a GPU only the shapes can be seen to move: each layer's own, of the basis that its stack has padded."""
    layers, subspaces, _ = random_problem(11)
    subspaces[1] = None
    penalty = GuardPenalty(layers, subspaces, SCALE)
    assert all(one is other for one, other in zip(penalty.placed(subspaces), subspaces, strict=True))
    for stack in penalty._stacks:
        stack.basis = stack.basis.to("meta")
    placed = penalty.placed(subspaces)
    assert placed[1] is None
    for one, other in zip(placed[::2], subspaces[::2], strict=True):
        assert one.basis.is_meta
        assert one.eigenvalues.is_meta
        assert (one.basis.shape, one.eigenvalues.shape) == (other.basis.shape, other.eigenvalues.shape)
        assert (one.trace, one.columns) == (other.trace, other.columns)


def test_factors_are_read_anew_also_in_another_precision():
    layers, subspaces, curvature = random_problem(10)
    penalty = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(task_curvature="kronecker"), curvature)
    before = penalty.evaluate(WEIGHTS)
    for layer in layers:
        layer.down.float()
        layer.up.float()
    single = penalty.evaluate(WEIGHTS)
    assert single.gradients[0][0].dtype == torch.float32
    assert single.total == pytest.approx(before.total, rel=1e-5)
    with torch.no_grad():
        layers[0].B.mul_(2)
    assert penalty.evaluate(WEIGHTS).total > single.total


@pytest.mark.parametrize(
    "change",
    [
        {"projection": "half"},
        {"geodesic": "rows"},
        {"task_curvature": "full"},
        {"alpha": 1.5},
        {"alpha": math.nan},
        {"beta": -1.0},
        {"tau": -0.1},
        {"tau": math.inf},
        {"row_fraction": 0.0},
        {"row_fraction": 1.5},
        {"tile_rows": 0},
    ],
)
def test_impossible_options(change):
    with pytest.raises(ConfigError, match=str(next(iter(change)))):
        PenaltyOptions(**change)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_impossible_weights(value):
    with pytest.raises(ConfigError, match=f"stability: weight {value}"):
        PenaltyWeights(stability=value)


def test_arguments_that_do_not_fit():
    layers, subspaces, curvature = random_problem(11)
    with pytest.raises(ConfigError, match="2 subspaces do not fit 3 layers"):
        GuardPenalty(layers, subspaces[:2], SCALE)
    with pytest.raises(ConfigError, match="1 curvatures do not fit"):
        GuardPenalty(layers, subspaces, SCALE, curvature=curvature[:1])
    with pytest.raises(ConfigError, match="scale 0"):
        GuardPenalty(layers, subspaces, 0.0)
    with pytest.raises(ConfigError, match="needs the task's curvature"):
        GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(task_curvature="diagonal"))
    one_sided = [dataclasses.replace(one, input=None) for one in curvature]
    with pytest.raises(ConfigError, match="no input side"):
        GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(task_curvature="kronecker"), one_sided)
    with pytest.raises(AdapterError, match=r"layer 0: the subspace is of shape \(7, 10\) and the layer of \(12, 9\)"):
        GuardPenalty(layers, [subspaces[1], None, None], SCALE)
    with pytest.raises(AdapterError, match=r"the task curvature is of shape"):
        GuardPenalty(layers, subspaces, SCALE, curvature=[curvature[1], None, None])


def test_state_of_another_kind_is_refused():
    layers, subspaces, _ = random_problem(12)
    penalty = GuardPenalty(layers, subspaces, SCALE)
    for state in ({}, {"version": 2, "seed": 0, "draw": 0}, {"version": 1, "seed": 0}):
        with pytest.raises(StateError, match="not the state of a penalty"):
            penalty.load_state_dict(state)
    json.dumps(penalty.state_dict())
