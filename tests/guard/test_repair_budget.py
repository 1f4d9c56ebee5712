"""The strength of a repair: searched for a budget, and shared out by layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import ConfigError
from loralign.guard.repair import repair
from loralign.guard.repair_methods import fisher_strengths, update_curvatures
from loralign.guard.repair_search import least_strength
from loralign.guard.subspace import soft_coefficients
from loralign.lora import canonical_name, lora_layers
from tests import zoo
from tests.guard.repair_setting import dense_updates, drift_of_the_subspace, factors, made_subspace


def test_budget_is_met_with_the_least_strength_to_within_the_tolerance():
    model = zoo.lora_model(dtype=torch.float32)
    subspace = made_subspace(model)
    start = drift_of_the_subspace(model, subspace)
    # The drift of a repair is (1 − ρ)² of the start's, so a ninth of it is reached at two thirds.
    report = repair(model, subspace, drift_budget=start / 9, measure=lambda: drift_of_the_subspace(model, subspace))
    assert report.met
    assert 2 / 3 <= report.strength <= 2 / 3 + 0.02
    assert report.measurements == len(report.trials) <= 8
    assert report.drift_before == pytest.approx(start)
    assert report.drift_after == pytest.approx(drift_of_the_subspace(model, subspace), rel=1e-9)
    assert report.drift_after == pytest.approx((1 - report.strength) ** 2 * start, rel=1e-5)
    assert {layer.strength for layer in report.layers} == {report.strength}


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.6, 1.0])
def test_by_rank_the_leading_directions_go_whole(strength):
    model, twin = zoo.lora_model(dtype=torch.float64), zoo.lora_model(dtype=torch.float64)
    subspace = made_subspace(model, rank=5)
    report = repair(model, subspace, strength=strength, by_rank=True)
    # 0.6 of five are three directions, not four for a rounding of 0.6 · 5.
    rank = {0.0: 0, 0.2: 1, 0.5: 3, 0.6: 3, 1.0: 5}[strength]
    if rank:
        repair(twin, subspace.truncated(rank))
    assert all(torch.equal(old, new) for old, new in zip(factors(twin), factors(model), strict=True))
    assert {layer.strength for layer in report.layers} == {rank / 5}


def test_by_rank_a_budget_is_met_with_the_fewest_directions():
    model = zoo.lora_model(dtype=torch.float64)
    subspace = made_subspace(model, rank=10)
    left = []
    for rank in range(11):
        twin = zoo.lora_model(dtype=torch.float64)
        if rank:
            repair(twin, subspace.truncated(rank))
        left.append(drift_of_the_subspace(twin, subspace))
    budget = left[0] / 5
    report = repair(
        model, subspace, drift_budget=budget, by_rank=True, measure=lambda: drift_of_the_subspace(model, subspace)
    )
    fewest = next(rank for rank, drift in enumerate(left) if drift <= budget)
    assert report.met
    assert {layer.strength for layer in report.layers} == {fewest / 10}
    assert report.drift_after == pytest.approx(left[fewest])


@pytest.mark.parametrize("more", [{"per_layer": True}, {"projection": "soft"}, {"method": "scale"}])
def test_by_rank_excludes_what_it_cannot_be_joined_with(more):
    model = zoo.lora_model(dtype=torch.float32)
    with pytest.raises(ConfigError, match="direction"):
        repair(model, made_subspace(model), by_rank=True, **more)


def test_adapter_within_its_budget_stays_bit_by_bit():
    model = zoo.lora_model(dtype=torch.float32)
    start = factors(model)
    report = repair(model, made_subspace(model), drift_budget=0.5, measure=lambda: 0.5)
    assert (report.met, report.strength, report.measurements) == (True, 0.0, 1)
    assert (report.drift_before, report.drift_after) == (0.5, 0.5)
    assert all(torch.equal(old, new) for old, new in zip(start, factors(model), strict=True))


def test_budget_out_of_reach_is_said_and_the_whole_repair_applied():
    model, twin = zoo.lora_model(dtype=torch.float32), zoo.lora_model(dtype=torch.float32)
    repair(twin, made_subspace(twin))
    report = repair(model, made_subspace(model), drift_budget=0.5, measure=lambda: 0.6)
    assert (report.met, report.strength, report.measurements) == (False, 1.0, 2)
    assert all(torch.equal(old, new) for old, new in zip(factors(twin), factors(model), strict=True))


@pytest.mark.parametrize("tolerance", [0.02, 0.001])
def test_search_on_a_drift_that_is_not_monotone_keeps_the_least_feasible_trial(tolerance):
    drifts = {0.0: 1.0, 0.5: 0.05, 0.25: 0.4, 0.375: 0.02, 0.3125: 0.3}

    def drift(strength):
        return drifts.get(strength, 0.2 if strength < 1 else 0.09)

    search = least_strength(drift, 0.1, tolerance=tolerance)
    feasible = [trial for trial in search.trials if trial.drift <= 0.1]
    assert search.chosen == min(feasible, key=lambda trial: trial.strength)
    assert search.chosen.strength == 0.375
    assert search.met
    assert len(search.trials) == 8


def test_model_is_left_at_the_chosen_trial_and_not_at_the_last():
    model = zoo.lora_model(dtype=torch.float32)
    layer = lora_layers(model)[0]
    start = layer.B.detach().clone()

    def measure():
        kept = float(layer.B.detach().norm() / start.norm())
        return 1.0 if kept > 0.6 else 0.0

    report = repair(model, None, method="scale", drift_budget=0.5, measure=measure)
    assert report.trials[-1].strength != report.strength
    torch.testing.assert_close(layer.B.detach(), (1 - report.strength) * start)
    assert 0.4 <= report.strength <= 0.42


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 3.0), st.floats(0.3, 4.0), st.floats(0.001, 1.0))
def test_search_on_a_monotone_drift_finds_the_least_strength(height, power, budget):
    search = least_strength(lambda strength: height * (1 - strength) ** power, budget)
    exact = max(0.0, 1 - (budget / height) ** (1 / power))
    assert search.met
    assert search.chosen.drift <= budget
    assert exact - 1e-9 <= search.chosen.strength <= exact + 0.02
    assert len(search.trials) <= 8


def test_measurements_are_limited():
    calls = []

    def drift(strength):
        calls.append(strength)
        return 1 - strength

    search = least_strength(drift, 0.3, tolerance=1e-6, max_measurements=4)
    assert calls == [0.0, 1.0, 0.5, 0.75]
    assert search.chosen.strength == 0.75


def test_drift_is_measured_around_a_given_strength():
    model = zoo.lora_model(dtype=torch.float32)
    subspace = made_subspace(model)
    start = drift_of_the_subspace(model, subspace)
    report = repair(model, subspace, strength=0.5, measure=lambda: drift_of_the_subspace(model, subspace))
    assert report.drift_before == pytest.approx(start)
    assert report.drift_after == pytest.approx(start / 4, rel=1e-5)
    assert (report.measurements, report.met, report.trials) == (2, None, [])


def test_curvatures_are_those_of_the_dense_update():
    model = zoo.lora_model(dtype=torch.float32)
    layers, subspace = lora_layers(model), made_subspace(model)
    for projection in ("hard", "soft"):
        damages, energies = update_curvatures(layers, subspace.match(layers), projection)
        for index, (layer, update) in enumerate(zip(layers, dense_updates(layers), strict=True)):
            found = subspace.layers[canonical_name(layer.name)]
            U, values = found.basis.double(), found.eigenvalues.double()
            critical = U @ soft_coefficients(values, projection).double().diag() @ U.mT @ update
            assert float(energies[index]) == pytest.approx(float(critical.square().sum()), rel=1e-5)
            F = U @ values.diag() @ U.mT
            assert float(damages[index]) == pytest.approx(float((critical.mT @ F @ critical).trace()), rel=1e-5)


_values = st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=6)


@settings(max_examples=80, deadline=None)
@given(_values, st.floats(0.01, 0.99))
def test_fisher_strengths_minimise_the_energy_taken_plus_the_damage_left(parts, strength):
    damages, energies = torch.tensor(parts, dtype=torch.float64).unbind(dim=1)
    found = torch.tensor(fisher_strengths(damages, energies, strength), dtype=torch.float64)
    assert ((found > 0) & (found < 1)).all()
    price = strength / (1 - strength) * energies.sum() / damages.sum()

    def cost(strengths):
        return float((strengths.square() * energies + price * (1 - strengths).square() * damages).sum())

    for shift in (1e-4, -1e-4):
        for index in range(len(parts)):
            moved = found.clone()
            moved[index] += shift
            assert cost(moved) > cost(found)


def test_fisher_strengths_rise_with_the_damage_and_agree_where_layers_do():
    damages = torch.tensor([4.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    energies = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    assert fisher_strengths(damages, energies, 0.0) == [0.0] * 5
    assert fisher_strengths(damages, energies, 1.0) == [1.0, 1.0, 1.0, 1.0, 0.0]
    lower, upper = fisher_strengths(damages, energies, 0.4), fisher_strengths(damages, energies, 0.6)
    assert lower[0] > lower[1] > lower[2] > lower[3] == 0
    assert all(low <= high for low, high in zip(lower, upper, strict=True))
    assert fisher_strengths(energies, energies, 0.3)[:4] == pytest.approx([0.3] * 4)
    assert fisher_strengths(torch.zeros(2), torch.zeros(2), 0.5) == [0.0, 0.0]


def test_repair_per_layer_meets_the_budget_and_takes_less_than_one_strength_for_all():
    model, twin = zoo.lora_model(dtype=torch.float32), zoo.lora_model(dtype=torch.float32)
    subspace = made_subspace(model, loudness=lambda name: 100.0 if "v_proj" in name else 1.0)
    budget = 0.05 * drift_of_the_subspace(model, subspace)
    reports = [
        repair(
            one,
            subspace,
            drift_budget=budget,
            measure=lambda one=one: drift_of_the_subspace(one, subspace),
            per_layer=per_layer,
            tolerance=1e-3,
            max_measurements=14,
        )
        for one, per_layer in ((model, True), (twin, False))
    ]
    assert all(report.met for report in reports)
    assert reports[0].removed < 0.8 * reports[1].removed
    by_name = {layer.name: layer.strength for layer in reports[0].layers}
    loud = [strength for name, strength in by_name.items() if "v_proj" in name]
    quiet = [strength for name, strength in by_name.items() if "v_proj" not in name]
    assert min(loud) > max(quiet)
