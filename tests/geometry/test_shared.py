from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from loralign.capture import GradientCapture
from loralign.errors import ConfigError, StateError
from loralign.geometry import refine, shared_directions, without_shared
from loralign.geometry.shared import check_shared_count
from loralign.lora import lora_layers
from tests import oracles, zoo

IDS = torch.tensor([0, 1, 2, 0, 1, 2])
# Far from alike, so that a stack that is not balanced would be that of the first objective.
LOUDNESS = torch.tensor([50.0, 1.0, 3.0]).double()
COUNT = 3


def _losses(model, inputs):
    return zoo.sample_losses(model, inputs) * LOUDNESS[IDS]


def _found(model, backward, ids, count, objectives=zoo.OBJECTIVES, **options):
    """As a user would have it: find the directions, then measure along them."""
    capture = GradientCapture(model, objectives, **options)
    with capture(ids):
        backward()
    directions = [shared_directions(stack, count) for stack in capture.stacks()]
    capture.reset(directions)
    with capture(ids):
        backward()
    found = without_shared(capture, directions)
    capture.close()
    model.zero_grad()
    return found, directions


def _of_model(model, inputs, count=COUNT, **options):
    return _found(model, lambda: _losses(model, inputs).mean().backward(), IDS, count, **options)


def _dense_directions(gradients, count=COUNT):
    balanced = torch.cat([gradient / torch.linalg.matrix_norm(gradient) for gradient in gradients])
    return torch.linalg.svd(balanced, full_matrices=False).Vh[:count].mT


def _dense(model, inputs, directions=None):
    """``G_i``, ``G_i'`` and ``P(G_i')`` per layer, of the objectives' own mean losses, by the formulas of the docs."""
    oracles.require_base_gradients(model)
    rows = oracles.full_gradients(model, _losses(model, inputs), IDS, 3)
    result = []
    for index, (layer, shares) in enumerate(zip(lora_layers(model), rows, strict=True)):
        gradients = [3 * gradient for gradient in shares]
        V = _dense_directions(gradients) if directions is None else directions[index]
        remaining = [gradient - gradient @ V @ V.mT for gradient in gradients]
        A, B = layer.A.detach(), layer.B.detach()
        result.append((gradients, remaining, [oracles.accessible_part(one, A, B) for one in remaining]))
    return result


def _energies(layers, part):
    return torch.stack([torch.stack([one.square().sum() for one in layer[part]]) for layer in layers])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("trained", [False, True], ids=["start", "trained"])
def test_exact_attenuation_of_what_remains_is_that_of_the_dense_formulas(architecture, trained):
    model = zoo.lora_model(architecture, trained=trained)
    inputs = zoo.batch()
    found, _ = _of_model(model, inputs, exact=True)
    dense = _dense(model, inputs)
    whole, remaining, accessible = (_energies(dense, part) for part in range(3))
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(found.attenuation("layer"), (accessible / remaining).sqrt(), **close)
    torch.testing.assert_close(found.attenuation(), (accessible.sum(0) / remaining.sum(0)).sqrt(), **close)
    torch.testing.assert_close(found.share("layer"), 1 - remaining / whole, **close)
    torch.testing.assert_close(found.share(), 1 - remaining.sum(0) / whole.sum(0), **close)
    assert found.directions == COUNT
    # Conflicts of what remains are read off the same Gramians.
    cross = torch.stack([oracles.gram(layer[1]) for layer in dense])
    torch.testing.assert_close(found.remaining.layer_full, cross, rtol=1e-7, atol=1e-9 * float(cross.max()))


@pytest.mark.parametrize("trained", [False, True], ids=["start", "trained"])
def test_sketched_sums_know_the_accessible_part_of_what_remains_exactly(trained):
    model = zoo.lora_model(trained=trained)
    inputs = zoo.batch()
    found, directions = _of_model(model, inputs, sketch_size=5, seed=7)
    dense = _dense(model, inputs, directions)
    accessible = torch.stack([oracles.gram(layer[2]) for layer in dense])
    close = {"rtol": 1e-7, "atol": 1e-9 * float(accessible.max())}
    torch.testing.assert_close(found.remaining.layer_accessible, accessible, **close)
    # What the two full Gramians differ by is G V, in which the sketch has no part.
    taken = _energies(dense, 0) - _energies(dense, 1)
    difference = (found.whole.layer_full - found.remaining.layer_full).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(difference, taken, rtol=1e-7, atol=1e-9 * float(taken.max()))


def test_a_sketch_finds_nearly_the_directions_of_the_exact_gradients():
    model = zoo.lora_model()
    inputs = zoo.batch()
    for exact, sketched in zip(
        _of_model(model, inputs, exact=True)[1], _of_model(model, inputs, sketch_size=32)[1], strict=True
    ):
        torch.testing.assert_close(sketched.mT @ sketched, torch.eye(COUNT).double())
        assert (exact.mT @ sketched).square().sum() > 0.8 * COUNT


class _OneLayer:
    """A PEFT model of one linear layer, with inputs and output gradients of every objective chosen at will."""

    def __init__(self, seed, objectives=3, tokens=5, rows=8, inputs=14, rank=3, trained=True, dtype=torch.float64):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        base = nn.Sequential(nn.Linear(inputs, rows, bias=False))
        self.model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0"])).to(dtype)
        layer = lora_layers(self.model)[0]
        with torch.no_grad():
            layer.A.copy_(self.draw(rank, inputs))
            layer.B.copy_(self.draw(rows, rank) if trained else torch.zeros(rows, rank))
        self.A, self.B = layer.A.detach(), layer.B.detach()
        self.x, self.g = self.draw(objectives, tokens, inputs), self.draw(objectives, tokens, rows)
        self.names = [f"objective {index}" for index in range(objectives)]

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    @property
    def gradients(self):
        return self.g.mT @ self.x

    def backward(self):
        (self.model(self.x.to(self.dtype)) * self.g).sum().backward()

    def found(self, count, **options):
        return _found(self.model, self.backward, torch.arange(len(self.names)), count, self.names, **options)


@pytest.mark.parametrize("options", [{"exact": True}, {"sketch_size": 4}], ids=["exact", "sketched"])
def test_stacks_have_the_gradients_inner_products_between_inputs(options):
    # B spans all outputs, so that a sketch's stack is exact too.
    layer = _OneLayer(3, rows=3, rank=3)
    capture = GradientCapture(layer.model, layer.names, **options)
    with capture(torch.arange(len(layer.names))):
        layer.backward()
    (stack,) = capture.stacks()
    gradients = layer.gradients
    torch.testing.assert_close(stack.mT @ stack, gradients.mT @ gradients, rtol=1e-9, atol=1e-9)


def test_what_lies_in_the_columns_of_b_counts_among_the_directions():
    # They span all outputs here, so that nothing is left to the sketch.
    layer = _OneLayer(3, rows=3, rank=3)
    _, (V,) = layer.found(2, sketch_size=4)
    dense = _dense_directions(layer.gradients, 2)
    torch.testing.assert_close(V @ V.mT, dense @ dense.mT)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), trained=st.booleans(), count=st.integers(0, 6), sketch=st.sampled_from([0, 4]))
def test_laws_of_what_remains(seed, trained, count, sketch):
    layer = _OneLayer(seed, trained=trained)
    options = {"sketch_size": sketch, "seed": seed} if sketch else {"exact": True}
    found, (V,) = layer.found(count, **options)
    gamma, share = found.attenuation(), found.share()
    assert ((gamma >= 0) & (gamma <= 1) & (share >= 0) & (share <= 1)).all()
    torch.testing.assert_close(found.attenuation("layer")[0], gamma)
    if count == 0:
        assert torch.equal(gamma, found.whole.attenuation())
        assert (share == 0).all()
    torch.testing.assert_close(V.mT @ V, torch.eye(count).double())
    # A louder objective is the same objective, and its loudness turns no direction.
    layer.g[1] *= 1e3
    louder, (turned,) = layer.found(count, **options)
    torch.testing.assert_close(turned @ turned.mT, V @ V.mT, rtol=0, atol=1e-7)
    torch.testing.assert_close(louder.attenuation(), gamma, rtol=1e-6, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    trained=st.booleans(),
    sketch=st.sampled_from([0, 4]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_gradient_wholly_in_the_shared_directions_leaves_nothing(seed, trained, sketch, dtype):
    layer = _OneLayer(seed, trained=trained, dtype=dtype)
    axes = torch.linalg.qr(layer.draw(14, 2)).Q
    # All objectives are loud along two directions; the first has nothing else.
    layer.x = (30 * layer.draw(3, 5, 2)) @ axes.mT + layer.x * torch.tensor([0.0, 1.0, 1.0]).double()[:, None, None]
    options = {"sketch_size": sketch, "seed": seed} if sketch else {"exact": True}
    found, (V,) = layer.found(2, **options)
    # The directions are found nearly, and to take them out leaves a trace that is not there if they are exact.
    layer.x[0] = layer.x[0] @ V @ V.mT
    found, _ = _along(layer, V, **options)
    for per in ("model", "layer"):
        assert found.attenuation(per).isfinite().all()
        assert (found.attenuation(per)[..., 0] == 0).all()
        assert (found.share(per)[..., 0] == 1).all()
        assert (found.attenuation(per)[..., 1:] > 0).all()
        assert (found.share(per)[..., 1:] < 1).all()
    assert found.remaining.cosine("full")[0].isnan().all()


def _along(layer, V, **options):
    capture = GradientCapture(layer.model, layer.names, **options)
    capture.reset([V])
    with capture(torch.arange(len(layer.names))):
        layer.backward()
    return without_shared(capture, [V]), capture


def test_the_estimate_of_what_remains_is_unbiased():
    layer = _OneLayer(0, rows=16, inputs=24, tokens=9)
    exact, (V,) = layer.found(4, exact=True)
    expected = exact.remaining.full
    draws = []
    for seed in range(300):
        found, capture = _along(layer, V, sketch_size=4, seed=seed)
        draws.append(found.remaining.full)
        capture.close()
    drawn = torch.stack(draws)
    standard = drawn.std(dim=0) / len(draws) ** 0.5
    assert ((drawn.mean(dim=0) - expected).abs() < 4 * standard).all()
    assert (standard.diagonal() < 0.03 * expected.diagonal()).all()


def test_restricting_the_rows_of_a_would_bound_it():
    """The two definitions that were not taken: only steps that leave ``V`` alone, and steps free to move along it."""
    layer = _OneLayer(4, rank=4, inputs=14)
    found, (V,) = layer.found(2, exact=True)
    remaining = layer.gradients - layer.gradients @ V @ V.mT
    off = torch.eye(14).double() - V @ V.mT
    # row(A) ∩ V^⊥: combinations c of the rows with c A V = 0.
    kernel = torch.linalg.svd((layer.A @ V).mT).Vh[2:]
    share = {}
    for name, rows in (("within", kernel @ layer.A), ("modulo", layer.A @ off)):
        reached = torch.stack([oracles.accessible_part(one, rows, layer.B) @ off for one in remaining])
        share[name] = (reached.square().sum((1, 2)) / remaining.square().sum((1, 2))).sqrt()
    gamma = found.attenuation()
    assert (share["within"] + 1e-3 < gamma).all()
    assert (gamma + 1e-3 < share["modulo"]).all()


def test_rows_that_hold_just_the_shared_directions_reach_nothing_of_the_rest():
    model = zoo.lora_model(trained=False)
    inputs = zoo.batch()
    rank = lora_layers(model)[0].rank
    capture = GradientCapture(model, zoo.OBJECTIVES, exact=True)
    with capture(IDS):
        _losses(model, inputs).mean().backward()
    refine(model, mode="balanced", capture=capture)
    capture.close()
    for options in ({"exact": True}, {"sketch_size": 64}):
        found, directions = _of_model(model, inputs, count=rank, **options)
        assert (found.whole.attenuation() > 0.5).all()
        if "exact" in options:
            assert (found.attenuation() < 1e-5).all()
        assert (found.attenuation() < 0.5 * found.whole.attenuation()).all()
        assert all(one.shape[1] == rank for one in directions)


def test_an_objective_without_gradient_has_no_value_and_no_say():
    layer = _OneLayer(2)
    layer.g[2] = 0
    found, (V,) = layer.found(2, exact=True)
    for per in ("model", "layer"):
        assert found.attenuation(per)[..., 2].isnan().all()
        assert found.attenuation(per)[..., :2].isfinite().all()
    dense = _dense_directions(layer.gradients[:2], 2)
    torch.testing.assert_close(V @ V.mT, dense @ dense.mT)


def test_directions_that_are_not_there_are_zero():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 4, 3, generator=generator).double() @ torch.randn(1, 3, 9, generator=generator).double()
    for stack in (rows, rows.repeat(4, 1, 1), torch.zeros(2, 4, 9)):
        V = shared_directions(stack, 6)
        rank = 3 if stack.any() else 0
        assert int((V.norm(dim=0) > 0).sum()) == rank
        torch.testing.assert_close(stack.double() @ V @ V.mT, stack.double())
        torch.testing.assert_close(V[:, :rank].mT @ V[:, :rank], torch.eye(rank).double())
    assert not shared_directions(rows.masked_fill(rows > 1, torch.nan), 2).any()


def test_wrong_use_is_named():
    layer = _OneLayer(1)
    with pytest.raises(ConfigError, match="14 shared directions"):
        layer.found(14, exact=True)
    with pytest.raises(ConfigError, match="-1 shared directions"):
        layer.found(-1, exact=True)
    capture = GradientCapture(layer.model, layer.names, sketch_size=4)
    for wrong in (5, -1):
        with pytest.raises(ConfigError, match="use 0 to 4"):
            check_shared_count(wrong, capture)
    check_shared_count(4, capture)
    with pytest.raises(StateError, match="nothing was captured"):
        capture.stacks()
    with capture(torch.arange(3)):
        layer.backward()
    directions = [shared_directions(stack, 2) for stack in capture.stacks()]
    with pytest.raises(StateError, match="not measured along"):
        without_shared(capture, directions)
