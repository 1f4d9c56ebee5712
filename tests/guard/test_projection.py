from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import ConfigError
from loralign.guard.projection import project, total_share, update_shares
from tests.guard.dense import projector
from tests.guard.penalties.made import random_problem


def _updates(layers) -> list[torch.Tensor]:
    return [(layer.scaling * layer.B @ layer.A).detach().clone() for layer in layers]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    strengths=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    projection=st.sampled_from(["hard", "soft"]),
    rank=st.integers(1, 6),
)
def test_the_update_becomes_what_the_dense_projector_leaves(seed, strengths, projection, rank):
    layers, subspaces, _ = random_problem(seed, subspace_rank=rank)
    before = _updates(layers)
    factors = [layer.A.detach().clone() for layer in layers]
    project(layers, subspaces, strengths, projection)
    for layer, subspace, update, strength, A in zip(layers, subspaces, before, strengths, factors, strict=True):
        expected = update - strength * projector(subspace, len(update), projection) @ update
        torch.testing.assert_close(layer.scaling * layer.B.detach() @ layer.A.detach(), expected)
        assert torch.equal(layer.A, A)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6))
def test_a_whole_hard_projection_is_idempotent_and_leaves_nothing_inside(seed, rank):
    layers, subspaces, _ = random_problem(seed, subspace_rank=rank)
    project(layers, subspaces)
    once = [layer.B.detach().clone() for layer in layers]
    assert float(update_shares(layers, subspaces).max()) < 1e-28
    project(layers, subspaces)
    for layer, one in zip(layers, once, strict=True):
        torch.testing.assert_close(layer.B.detach(), one, rtol=0, atol=1e-14)


def test_partial_strengths_multiply():
    layers, subspaces, _ = random_problem(1)
    others, _, _ = random_problem(1)
    project(layers, subspaces, 0.5)
    project(layers, subspaces, 0.5)
    project(others, subspaces, 0.75)
    for layer, other in zip(layers, others, strict=True):
        torch.testing.assert_close(layer.B, other.B)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_factors_keep_their_dtype_and_are_rounded_once(dtype):
    layers, subspaces, _ = random_problem(2, shapes=((200, 30),), rank=8, subspace_rank=60, dtype=dtype)
    (layer,), (subspace,) = layers, subspaces
    parameter, start = layer.B, layer.B.detach().double()
    project(layers, subspaces)
    assert layer.B is parameter
    assert layer.B.dtype == dtype
    expected = start - subspace.basis @ (subspace.basis.mT @ start)
    error = (layer.B.detach().double() - expected).abs()
    # Half a unit in the last place of the result, and the rounding of the float32 products.
    assert bool((error <= expected.abs() * torch.finfo(dtype).eps / 2 + 1e-6).all())


def test_layers_without_subspace_or_strength_are_not_touched():
    layers, subspaces, _ = random_problem(3)
    before = [layer.B.detach().clone() for layer in layers]
    versions = [layer.B._version for layer in layers]
    project(layers, [None, subspaces[1], subspaces[2]], [1.0, 0.0, 1.0])
    assert torch.equal(layers[0].B, before[0])
    assert [layer.B._version - old for layer, old in zip(layers, versions, strict=True)][:2] == [0, 0]
    assert not torch.equal(layers[2].B, before[2])


def test_shares_are_those_of_the_dense_update():
    layers, subspaces, _ = random_problem(4)
    torch.nn.init.zeros_(layers[2].B)
    shares = update_shares(layers, [subspaces[0], None, subspaces[2]])
    update = layers[0].B.detach() @ layers[0].A.detach()
    inside = projector(subspaces[0], len(update), "hard") @ update
    assert shares.dtype == torch.float64
    assert shares.tolist() == pytest.approx([float(inside.square().sum() / update.square().sum()), 0, 0])
    assert update_shares([], []).shape == (0,)


def test_total_share_weighs_every_layer_by_its_update():
    """Layers of different scaling: a share averaged over layers, or weighed by ``s`` for ``s²``, is another number."""
    layers, subspaces, _ = random_problem(5)
    layers = [replace(layer, scaling=scaling) for layer, scaling in zip(layers, (0.5, 2.0, 7.0), strict=False)]
    subspaces = subspaces[: len(layers)]
    updates = _updates(layers)
    inside = [projector(one, len(update), "hard") @ update for one, update in zip(subspaces, updates, strict=True)]
    expected = sum(float(one.square().sum()) for one in inside) / sum(float(one.square().sum()) for one in updates)
    assert total_share(layers, subspaces) == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        for layer in layers:
            layer.B.zero_()
    assert total_share(layers, subspaces) == 0.0


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), [0.5, 0.5], [0.5, 0.5, 2.0]])
def test_impossible_strengths_change_nothing(strength):
    layers, subspaces, _ = random_problem(5)
    before = [layer.B.detach().clone() for layer in layers]
    with pytest.raises(ConfigError, match="strength"):
        project(layers, subspaces, strength)
    assert all(torch.equal(layer.B, one) for layer, one in zip(layers, before, strict=True))


def test_an_unknown_projection():
    layers, subspaces, _ = random_problem(6)
    with pytest.raises(ConfigError, match="'half' is unknown"):
        project(layers, subspaces, 1.0, "half")
