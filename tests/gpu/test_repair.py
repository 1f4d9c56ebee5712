"""Repairs of an adapter on the GPU are those of the same adapter on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loralign.guard import ProbeSet, repair
from loralign.guard.peers import PeerOptions
from loralign.lora import lora_layers
from tests import zoo
from tests.evaluation import models
from tests.gpu import both
from tests.guard.repair_setting import dense_updates, made_subspace
from tests.training import guard_runs

pytestmark = pytest.mark.gpu
METHODS: dict[str, dict[str, Any]] = {
    "fisher": {"strength": 0.7},
    "soft fisher": {"strength": 0.7, "projection": "soft"},
    "fisher per layer": {"strength": 0.5, "per_layer": True},
    "fisher by rank": {"strength": 0.5, "by_rank": True},
    "random": {"method": "random", "strength": 1.0, "seed": 3},
    "scale": {"method": "scale", "strength": 0.4},
    "safe_lora": {"method": "safe_lora", "strength": 0.6, "options": PeerOptions(projected_layers=7)},
    "safe_lora, base on the CPU": {"method": "safe_lora", "options": PeerOptions(threshold=0.9)},
    "intruder": {"method": "intruder", "strength": 0.5, "options": PeerOptions(epsilon=0.9)},
}


@pytest.mark.parametrize("method", METHODS)
def test_repaired_factors_are_those_of_the_cpu(device: torch.device, method: str) -> None:
    model, unaligned = zoo.lora_model(dtype=torch.float32), zoo.lora_model(dtype=torch.float32, seed=1).unload()
    subspace = made_subspace(model)
    found = []
    for place in (device, both.CPU):
        own, options = both.copied(model, place), dict(METHODS[method])
        if options.get("method") == "safe_lora":
            options["unaligned"] = both.copied(unaligned, place if method == "safe_lora" else both.CPU)
        start = [update.cpu() for update in dense_updates(lora_layers(own))]
        report = repair(own, subspace, **options)
        layers = lora_layers(own)
        assert {factor.device for layer in layers for factor in (layer.A, layer.B)} == {place}
        updates = [update.cpu() for update in dense_updates(layers)]
        assert any(not torch.equal(before, after) for before, after in zip(start, updates, strict=True))
        found.append((report, updates))
    (report, updates), (wanted, expected) = found
    for one, other, now, then in zip(report.layers, wanted.layers, updates, expected, strict=True):
        # Products of factors, since the intruder method is free to turn them.
        torch.testing.assert_close(now, then, rtol=0, atol=1e-5 * float(then.norm()) + 1e-7)
        assert one.strength == pytest.approx(other.strength, rel=1e-5)
        assert one.share_after == pytest.approx(other.share_after, rel=1e-4, abs=1e-6)
    assert report.removed == pytest.approx(wanted.removed, rel=1e-4, abs=1e-6)


def test_a_drift_budget_is_met_at_the_strength_of_the_cpu(device: torch.device) -> None:
    model = models.with_adapter(models.build("llama"), std=0.1, target_modules=guard_runs.MODULES)
    subspace = guard_runs.subspace(rank=8)
    reports = []
    for place in (device, both.CPU):
        own = both.copied(model, place)
        probe = ProbeSet(guard_runs.completions(8))
        with own.disable_adapter():
            probe.cache(own)
        start = probe.measure(own).kl
        reports.append(repair(own, subspace, drift_budget=0.8 * start, measure=lambda: probe.measure(own).kl))  # noqa: B023
    found, expected = reports
    assert found.met == expected.met
    assert found.measurements == expected.measurements
    assert found.strength == pytest.approx(expected.strength, abs=0.02)
    assert found.drift_after == pytest.approx(expected.drift_after, rel=1e-3)
