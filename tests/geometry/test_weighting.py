from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import MeanWeighting, MGDAWeighting, PCGradWeighting, UPGrad, UPGradWeighting

from loralign.errors import ConfigError, StateError
from loralign.geometry import (
    GeoWeighting,
    GramianWeighting,
    MatchWeighting,
    NormWeighting,
    SmoothedWeighting,
    UniformWeighting,
    clip_weights,
    make_weighting,
)
from tests.geometry.made import random_layers, statistics_of

TARGET = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
EVERY = [
    UniformWeighting(),
    NormWeighting(),
    GeoWeighting(),
    GeoWeighting(power=2.0),
    GeoWeighting(per="layer"),
    MatchWeighting(),
    GramianWeighting(UPGradWeighting()),
    GramianWeighting(MGDAWeighting(), space="accessible"),
    GramianWeighting(PCGradWeighting(), space="full"),
]


@pytest.mark.parametrize("weighting", EVERY, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999))
def test_every_weighting_keeps_the_contract(weighting, seed):
    layers = random_layers(seed)
    statistics = statistics_of(layers)
    weights = weighting(statistics, TARGET)
    assert weights.dtype == torch.float64
    assert weights.shape == ((len(layers), 3) if getattr(weighting, "per", "") == "layer" else (3,))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), TARGET.sum().expand(weights.shape[:-1]))
    absent = statistics_of(
        [([g[0], g[1], torch.zeros_like(g[2])], A, B, s) for g, A, B, s in layers], samples=[4, 4, 0]
    )
    weights = weighting(absent, TARGET)
    assert weights.isfinite().all()
    assert (weights[..., 2] == TARGET[2]).all()
    torch.testing.assert_close(weights.sum(dim=-1), TARGET.sum().expand(weights.shape[:-1]))


def test_norm_gives_equal_gradient_sizes_on_loras_parameters():
    statistics = statistics_of(random_layers(1))
    weights = NormWeighting()(statistics, TARGET)
    sizes = weights / TARGET * statistics.euclidean.diagonal().sqrt()
    torch.testing.assert_close(sizes, sizes[:1].expand(3))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_geo_is_the_inverse_attenuation(power):
    statistics = statistics_of(random_layers(2))
    weights = GeoWeighting(power=power)(statistics, TARGET)
    level = weights / TARGET * statistics.attenuation() ** power
    torch.testing.assert_close(level, level[:1].expand(3))
    per_layer = GeoWeighting(power=power, per="layer")(statistics, TARGET)
    level = per_layer / TARGET * statistics.attenuation(per="layer") ** power
    torch.testing.assert_close(level, level[:, :1].expand(2, 3))


def test_geo_floor_bounds_an_unreachable_objective():
    A, B = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 1).double()
    reached, lost = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1e-3, 1.0]]).double()
    weights = GeoWeighting(floor=0.1)(statistics_of([([reached, lost], A, B, 1.0)]), torch.ones(2))
    assert weights.tolist() == pytest.approx([2 / 11, 20 / 11])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_match_gives_the_progress_of_the_full_mixture_where_that_is_possible(seed):
    statistics = statistics_of(random_layers(seed, layers=6))
    weights = MatchWeighting()(statistics, TARGET)
    solution = torch.linalg.solve(statistics.accessible, statistics.full @ TARGET)
    if (solution > 0).all():
        torch.testing.assert_close(weights, solution * TARGET.sum() / solution.sum())


def test_match_without_cross_terms_is_geo_with_power_two():
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 12, generator=generator).double(), torch.zeros(3, 2).double()
    gradients = []
    for row in range(3):
        gradient = torch.zeros(3, 12).double()
        gradient[row] = torch.randn(12, generator=generator)
        gradients.append(gradient)
    statistics = statistics_of([(gradients, A, B, 1.0)])
    torch.testing.assert_close(MatchWeighting()(statistics, TARGET), GeoWeighting(power=2.0)(statistics, TARGET))


def test_peer_on_lora_parameters_equals_torchjds_own_aggregator():
    layers = random_layers(4)
    rows = torch.stack(
        [
            torch.cat([torch.cat([(s * B.mT @ g[i]).flatten(), (s * g[i] @ A.mT).flatten()]) for g, A, B, s in layers])
            for i in range(3)
        ]
    )
    weights = GramianWeighting(UPGradWeighting())(statistics_of(layers), torch.ones(3))
    combined = UPGrad()(rows)
    ours = weights @ rows
    cosine = torch.nn.functional.cosine_similarity(ours, combined, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


def test_a_mean_peer_is_uniform():
    weights = GramianWeighting(MeanWeighting())(statistics_of(random_layers(0)), TARGET)
    torch.testing.assert_close(weights, TARGET)


def test_names():
    assert make_weighting("geo-layer") == GeoWeighting(per="layer")
    assert isinstance(make_weighting("upgrad"), GramianWeighting)
    with pytest.raises(ConfigError, match="did you mean 'upgrad'"):
        make_weighting("upgrd")
    with pytest.raises(ConfigError, match="per"):
        GeoWeighting(per="token")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999))
def test_clipping_keeps_the_sum_and_the_box(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(4, generator=generator).double() + 0.1
    raw = torch.rand(4, generator=generator).double() ** 6
    raw = raw * target.sum() / raw.sum()
    low, high = target / 4, target * 4
    clipped = clip_weights(raw, low, high)
    assert (clipped >= low - 1e-12).all()
    assert (clipped <= high + 1e-12).all()
    torch.testing.assert_close(clipped.sum(), target.sum())
    inside = (clipped > low + 1e-9) & (clipped < high - 1e-9)
    ratios = clipped[inside] / raw[inside]
    torch.testing.assert_close(ratios, ratios[:1].expand(len(ratios)))


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=2, max_size=5).filter(any))
def test_weights_of_nothing_are_lifted_where_the_others_cannot_make_up_the_sum(weights):
    """MGDA and least squares give vertices, such as (0, 3, 0) where no weight may move by more than half."""
    raw = torch.tensor(weights, dtype=torch.float64)
    raw = raw * len(raw) / raw.sum()
    low, high = torch.full_like(raw, 1 / 1.5), torch.full_like(raw, 1.5)
    clipped = clip_weights(raw, low, high)
    assert (clipped >= low - 1e-9).all()
    assert (clipped <= high + 1e-9).all()
    torch.testing.assert_close(clipped.sum(), raw.sum())
    # The order of the weights is that of the raw ones.
    assert (clipped[raw.argmax()] >= clipped - 1e-9).all()


def test_smoothing_is_a_ratio_of_averages():
    first, second = statistics_of(random_layers(1)), statistics_of(random_layers(2))
    smoothed = SmoothedWeighting(GeoWeighting(), decay=0.75, bounds=(0.01, 100.0), max_change=1e6)
    smoothed.update(first, TARGET)
    weights = smoothed.update(second, TARGET)
    accessible = 0.75 * first.accessible + 0.25 * second.accessible
    full = 0.75 * first.full + 0.25 * second.full
    raw = TARGET / (accessible.diagonal() / full.diagonal()).sqrt()
    torch.testing.assert_close(weights, raw * TARGET.sum() / raw.sum())


def test_an_absent_objective_keeps_its_average_and_a_new_one_starts_its_own():
    layers = random_layers(1)
    whole = statistics_of(layers)
    absent = statistics_of(
        [([3 * g[0], g[1], torch.zeros_like(g[2])], A, B, s) for g, A, B, s in layers], samples=[4, 4, 0]
    )
    smoothed = SmoothedWeighting(NormWeighting(), decay=0.5)
    smoothed.update(whole, TARGET)
    smoothed.update(absent, TARGET)
    assert smoothed.average.full[2, 2] == whole.full[2, 2]
    torch.testing.assert_close(smoothed.average.full[0, 0], 0.5 * whole.full[0, 0] + 0.5 * absent.full[0, 0])
    late = SmoothedWeighting(NormWeighting(), decay=0.5)
    assert late.update(absent, TARGET)[2] == TARGET[2]
    late.update(whole, TARGET)
    torch.testing.assert_close(late.average.full[2, 2], whole.full[2, 2])


@pytest.mark.parametrize("bad", ["zero", "nan"])
def test_unusable_gradients_leave_the_weights_and_are_said(bad):
    layers = random_layers(1)
    value = 0.0 if bad == "zero" else float("nan")
    broken = statistics_of([([torch.zeros_like(x) for x in g], A, B, s) for g, A, B, s in layers])
    if bad == "nan":
        broken.layer_full.fill_(value)
    smoothed = SmoothedWeighting(NormWeighting())
    before = smoothed.update(statistics_of(layers), TARGET)
    assert smoothed.skipped is None
    assert torch.equal(smoothed.update(broken, TARGET), before)
    assert ("not finite" if bad == "nan" else "no objective") in smoothed.skipped
    assert torch.equal(SmoothedWeighting(NormWeighting()).update(broken, TARGET), TARGET)


def test_change_per_measurement_and_bounds_are_kept():
    statistics = statistics_of(random_layers(1))
    loud = statistics.scaled(torch.tensor([1e3, 1.0, 1.0]))
    smoothed = SmoothedWeighting(NormWeighting(), decay=0.0, bounds=(0.5, 2.0), max_change=1.2)
    previous = TARGET
    for _ in range(12):
        weights = smoothed.update(loud, TARGET)
        ratio = weights / previous
        assert (ratio <= 1.2 + 1e-9).all()
        assert (ratio >= 1 / 1.2 - 1e-9).all()
        previous = weights
    assert float(weights[0] / TARGET[0]) == pytest.approx(0.5)


def test_state_survives_json_and_versions_are_checked():
    smoothed = SmoothedWeighting(GeoWeighting(per="layer"))
    smoothed.update(statistics_of(random_layers(1)), TARGET)
    again = SmoothedWeighting(GeoWeighting(per="layer"))
    again.load_state_dict(json.loads(json.dumps(smoothed.state_dict())))
    following = statistics_of(random_layers(2))
    assert torch.equal(again.update(following, TARGET), smoothed.update(following, TARGET))
    with pytest.raises(StateError, match="version"):
        again.load_state_dict({"version": 0})
    for bad in ({"decay": 1.0}, {"bounds": (2.0, 3.0)}, {"max_change": 1.0}):
        with pytest.raises(ConfigError):
            SmoothedWeighting(NormWeighting(), **bad)
