from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import AdapterError, ConfigError, StateError
from loralign.guard import AlignmentSubspace, LayerSubspace, estimate_fisher, soft_coefficients
from loralign.guard.identity import base_modules, layer_identity
from loralign.lora import lora_layers
from tests import zoo
from tests.guard import fisher_oracles


def _estimate(model, seed=2, **options):
    options = {"rank": 3, "min_agreement": 0.0, "show_progress": False, **options}
    return estimate_fisher(model, fisher_oracles.completions(6, seed), **options)


@pytest.fixture(scope="module")
def subspace():
    return _estimate(zoo.lora_model())


def _layer(basis, values=None, trace=10.0, columns=4):
    values = torch.arange(basis.shape[1], 0, -1).float() if values is None else values
    return LayerSubspace(basis, values, trace, columns)


def _with(subspace, **layers):
    return AlignmentSubspace(layers, subspace.info)


def test_energies_and_scale_come_from_the_eigenvalues(subspace):
    first, second = _layer(torch.eye(5)[:, :3], trace=12.0), _layer(torch.eye(6)[:, :1], trace=2.0)
    both = _with(subspace, a=first, b=second)
    assert (first.rank, first.rows, first.energy) == (3, 5, pytest.approx(0.5))
    assert both.scale == pytest.approx((3 + 1) / 2)
    torch.testing.assert_close(both.energy_curve("a"), torch.tensor([3, 5, 6]).double() / 12)
    with pytest.raises(ConfigError, match="no layer 'c'"):
        both.energy_curve("c")
    with pytest.raises(ConfigError, match="at least one layer"):
        _with(subspace)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 20), q=st.integers(1, 20), p=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_similarity_is_the_mean_squared_cosine_of_principal_angles(m, q, p, seed):
    torch.manual_seed(seed)
    frames = [torch.linalg.qr(torch.randn(m, min(size, m), dtype=torch.float64)).Q for size in (q, p)]
    one, two = (AlignmentSubspace({"a": _layer(frame)}, None) for frame in frames)
    cosines = torch.linalg.svdvals(frames[0].mT @ frames[1])
    assert one.similarity(two)["a"] == pytest.approx(float(cosines.square().mean()), abs=1e-6)
    assert two.similarity(one) == pytest.approx(one.similarity(two))
    assert one.similarity(one)["a"] == pytest.approx(1.0)


def test_similarity_needs_layers_in_common(subspace):
    with pytest.raises(StateError, match="no layer in common"):
        subspace.similarity(_with(subspace, other=_layer(torch.eye(5))))
    name = next(iter(subspace.layers))
    with pytest.raises(StateError, match="shape"):
        subspace.similarity(_with(subspace, **{name: _layer(torch.eye(5))}))


def test_the_control_is_random_of_the_same_ranks(subspace):
    control = subspace.random_like(7)
    for name, layer in subspace.layers.items():
        other = control.layers[name]
        assert other.basis.shape == layer.basis.shape
        assert torch.equal(other.eigenvalues, layer.eigenvalues)
        torch.testing.assert_close(other.basis.mT @ other.basis, torch.eye(layer.rank))
    assert control.info.kind == "random"
    assert (control.info.seed, control.info.half_agreement) == (7, None)
    same, another = subspace.random_like(7), subspace.random_like(8)
    assert all(torch.equal(same.layers[name].basis, layer.basis) for name, layer in control.layers.items())
    assert max(control.similarity(another).values()) < 0.9
    # Two layers of one size must not get the same directions.
    bases = [layer.basis for layer in control.layers.values() if layer.rows == 24]
    assert not torch.equal(bases[0], bases[1])


def test_random_directions_are_spread_evenly(subspace):
    layer = _layer(torch.linalg.qr(torch.randn(6, 2)).Q)
    draws = torch.stack([_with(subspace, a=layer).random_like(seed).layers["a"].basis for seed in range(3000)])
    projector = (draws @ draws.mT).mean(dim=0)
    torch.testing.assert_close(projector, torch.eye(6) / 3, rtol=0, atol=0.03)
    # Haar: every column's direction is even too, signs included.
    assert draws.mean(dim=0).abs().max() < 0.03


def test_truncation_keeps_the_leading_directions(subspace):
    small = subspace.truncated(2)
    for name, layer in subspace.layers.items():
        assert torch.equal(small.layers[name].basis, layer.basis[:, :2])
        assert torch.equal(small.layers[name].eigenvalues, layer.eigenvalues[:2])
        assert small.layers[name].trace == layer.trace
    assert min(small.similarity(subspace).values()) == pytest.approx(1.0)
    assert subspace.truncated(50).layers == subspace.layers
    with pytest.raises(ConfigError, match="rank 0"):
        subspace.truncated(0)


def test_layers_are_matched_by_their_name_in_the_base(subspace):
    layers = lora_layers(zoo.lora_model())
    matched = subspace.match(list(reversed(layers)))
    assert matched == list(reversed(subspace.layers.values()))
    attention = _estimate(zoo.lora_model(target_modules=["q_proj", "v_proj"]))
    with pytest.raises(AdapterError, match=r"covers 4 of the adapter's 14 layers and lacks model\.layers\.0\..*k_proj"):
        attention.match(layers)
    partly = attention.match(layers, partial=True)
    assert sum(one is not None for one in partly) == 4
    with pytest.raises(AdapterError, match=r"covers none of the adapter's 14 layers"):
        _with(subspace, other=_layer(torch.eye(3))).match(layers, partial=True)
    name = next(iter(subspace.layers))
    with pytest.raises(StateError, match=rf"{name}: the layer has shape \(24, 24\)"):
        _with(subspace, **{name: _layer(torch.eye(3))}).match(layers, partial=True)


def test_a_subspace_knows_its_base(subspace):
    subspace.check(zoo.lora_model())
    subspace.check(zoo.lora_model(trained=False, rank=2))
    torch.manual_seed(0)
    subspace.check(zoo.llama())
    with pytest.raises(StateError, match=r"self_attn.q_proj: the model has other weights"):
        subspace.check(zoo.lora_model(seed=1))
    with pytest.raises(StateError, match=r"the model has no layer model\.layers\.0.*and \d+ more"):
        subspace.check(zoo.lora_model("gpt2"))
    deeper = zoo.llama()
    deeper.model.layers[1].mlp.up_proj = torch.nn.Linear(24, 41, bias=False)
    with pytest.raises(StateError, match=r"other weights|shape \(41, 24\)"):
        subspace.check(deeper)
    # Weights of other layers, such as the head's, are no part of it.
    torch.manual_seed(0)
    head = zoo.llama()
    torch.nn.init.zeros_(head.lm_head.weight)
    subspace.check(head)


def test_every_dtype_that_keeps_the_checkpoint_is_the_same_base():
    torch.manual_seed(0)
    stored = zoo.llama().to(torch.bfloat16)
    estimated = _estimate(stored)
    assert estimated.layers["model.layers.0.mlp.up_proj"].weights is not None
    for dtype in (torch.float32, torch.float64):
        estimated.check(stored.to(dtype))
    torch.manual_seed(0)
    whole = zoo.llama()
    estimated = _estimate(whole)
    estimated.check(whole.to(torch.bfloat16))
    whole.float()
    names = list(estimated.layers)
    assert {layer_identity(base).weights for base in base_modules(whole.half(), names).values()} == {None}
    estimated.check(whole)


def test_revisions_and_names_must_not_contradict(subspace):
    model = zoo.lora_model()
    named = _estimate(model, name="someone/model", revision="abc")
    assert (named.info.model, named.info.revision) == ("someone/model", "abc")
    model.config._commit_hash = "def"
    with pytest.raises(StateError, match="of revision abc and the model of def"):
        named.check(model)
    model.config._commit_hash = "abc"
    model.config._name_or_path = "/a/copy"
    named.check(model)
    # Without comparable weights the name decides.
    half = zoo.lora_model(dtype=torch.float16)
    half.config._name_or_path = "another/model"
    with pytest.raises(StateError, match="of someone/model and the model is another/model"):
        named.check(half)
    half.config._name_or_path = "someone/model"
    named.check(half)


def test_quantised_bases_are_known_by_name_and_shape():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear4bit(64, 32, bias=False)
    identity = layer_identity(linear.to("cpu"))
    assert (identity.rows, identity.columns, identity.weights) == (32, 64, None)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30))
def test_soft_coefficients_give_the_median_direction_one_half(values):
    eigenvalues = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    soft = soft_coefficients(eigenvalues, "soft")
    assert ((soft > 0) & (soft < 1)).all()
    assert (soft.diff() <= 1e-12).all()
    if len(values) % 2:
        assert float(soft.median()) == pytest.approx(0.5)
    torch.testing.assert_close(soft, soft_coefficients(7 * eigenvalues, "soft"))
    assert torch.equal(soft_coefficients(eigenvalues, "hard"), torch.ones(len(values)).double())


def test_soft_coefficients_at_the_edges():
    assert soft_coefficients(torch.zeros(3), "soft").tolist() == [0.5] * 3
    assert soft_coefficients(torch.zeros(0), "soft").shape == (0,)
    with pytest.raises(ConfigError, match="'firm'"):
        soft_coefficients(torch.ones(2), "firm")


def test_a_subspace_can_be_cut_to_layers_and_ranks(subspace):
    names = list(subspace.layers)
    assert list(subspace.restricted(names[:2]).layers) == names[:2]
    assert subspace.restricted([]) is subspace.restricted(names) is subspace
    cut = subspace.with_ranks({names[1]: 1, names[3]: 50})
    assert {name: layer.rank for name, layer in cut.layers.items()} == {names[1]: 1, names[3]: 3}
    with pytest.raises(ConfigError, match="at least one layer"):
        subspace.with_ranks({"other": 2})
