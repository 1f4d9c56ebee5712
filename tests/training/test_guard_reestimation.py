"""Estimating the subspace again while a guarded run is on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loralign.guard import estimate_fisher
from loralign.training import GuardConfig, GuardData, GuardEngine
from tests.evaluation import models
from tests.training import guard_runs
from tests.training.guard_runs import PROBE, STRONG, StopAt, records


def test_reestimation_keeps_to_the_adapters_layers(tmp_path: Path) -> None:
    """A subspace of more layers than the adapter's: a resumed run finds the layers of its checkpoint."""
    held = estimate_fisher(
        models.build("llama"), guard_runs.completions(16), rank=3, min_agreement=0.0, show_progress=False
    )
    assert len(held.layers) > 6
    data = GuardData(probe=PROBE.probe, alignment=guard_runs.completions(16))
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    config = GuardConfig(**STRONG, reestimate_every=1)
    whole = guard_runs.train(guard_runs.trainer(tmp_path / "a", config, held=held, data=data, **options))
    cut = guard_runs.trainer(tmp_path / "b", config, held=held, data=data, **options)
    cut.add_callback(StopAt(2))
    cut.train()
    resumed = guard_runs.trainer(tmp_path / "b", config, held=held, data=data, **options)
    found = guard_runs.train(resumed, resume_from_checkpoint=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    # After the last step there is nothing left for a penalty to act on.
    assert [one["step"] for one in records(tmp_path / "b", "reestimate")] == [0, 1, 2]


def test_reestimation_that_fails_is_told_and_survived(tmp_path: Path) -> None:
    held = guard_runs.subspace(rank=3)
    data = GuardData(alignment=guard_runs.completions(1))
    one = guard_runs.trainer(tmp_path, GuardConfig(reestimate_every=2), held=held, data=data)
    one.train()
    codes = [record["code"] for record in records(tmp_path, "warning")]
    assert codes == ["other_samples", "not_reestimated"]


@pytest.mark.parametrize(
    ("mode", "every", "steps"),
    [
        ("project", 0.5, [1, 3]),
        ("project", 0.3, [1, 3]),
        ("penalty", 0.25, [0, 1, 2]),
        ("project", 3, [2]),
        ("project", 0, []),
        ("measure", 1, []),
    ],
)
def test_reestimation_comes_after_steps_or_shares_of_the_run(
    tmp_path: Path, mode: Any, every: float, steps: list[int]
) -> None:
    config = GuardConfig(guard_mode=mode, reestimate_every=every, probe_every=0)
    data = GuardData(alignment=guard_runs.completions(16))
    guard_runs.trainer(tmp_path, config, held=guard_runs.subspace(rank=3), data=data, max_steps=4).train()
    assert [record["step"] for record in records(tmp_path, "reestimate")] == steps


def test_the_newest_subspace_is_the_one_projected_out(tmp_path: Path) -> None:
    """Nothing of the final update may lie in the subspace that was estimated after the last step."""
    config = GuardConfig(guard_mode="project", reestimate_every=1, probe_every=1)
    data = GuardData(probe=PROBE.probe, alignment=guard_runs.completions(16))
    one = guard_runs.trainer(tmp_path, config, held=guard_runs.subspace(rank=3), data=data)
    one.train()
    assert all(record["share"] < 1e-10 for record in records(tmp_path, "probe"))
    assert all(record["similarity"] < 0.999 for record in records(tmp_path, "reestimate"))


@pytest.mark.parametrize("tokens", [2, None])
def test_estimates_on_the_same_opening_as_before(tokens: int | None) -> None:
    """Whole responses in place of openings would be another subspace, and of another kind than the first."""
    config = GuardConfig(guard_mode="project", reestimate_every=1, probe_every=0)
    held = guard_runs.subspace(rank=2, response_tokens=tokens)
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    engine = GuardEngine(model, held, config, GuardData(alignment=guard_runs.completions(16)))
    engine.start(4)
    assert [record["kind"] for record in engine.finish_step(0)].count("reestimate") == 1
    assert engine.hold is not None
    assert engine.hold.subspace is not held
    assert engine.hold.subspace.info.response_tokens == tokens


def _engine(held: Any, alignment: Any, **options: Any) -> GuardEngine:
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    config = GuardConfig(**{"guard_mode": "project", "reestimate_every": 1, "probe_every": 0, **options})
    return GuardEngine(model, held, config, GuardData(alignment=alignment))


def test_a_layer_that_supports_fewer_directions_stops_no_other() -> None:
    """Ranks by energy differ from layer to layer; the largest of them is out of some layers' reach."""
    held = guard_runs.subspace(rank=None, count=4, energy=1.0, min_rank=1, max_rank=32, response_tokens=1)
    assert len({layer.rank for layer in held.layers.values()}) > 1
    engine = _engine(held, guard_runs.completions(4))
    engine.start(4)
    assert [record["kind"] for record in engine.finish_step(0)].count("reestimate") == 1
    assert engine.hold is not None
    assert {name: layer.rank for name, layer in engine.hold.subspace.layers.items()} == {
        name: layer.rank for name, layer in held.layers.items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact"},
        {"method": "sketched", "oversampling": 2},
        {"method": "sketched", "oversampling": 5, "passes": 3},
        {"method": "auto", "oversampling": 1},
    ],
)
def test_estimates_by_the_same_method_as_before(options: dict[str, Any]) -> None:
    """At the start's own weights nothing but the test matrices is new; another method would read as instability."""
    held = guard_runs.subspace(rank=3, **options)
    engine = _engine(held, guard_runs.completions(16))
    engine.start(4)
    engine.finish_step(0)
    assert engine.hold is not None
    assert engine.hold.subspace is not held
    then, now = held.info, engine.hold.subspace.info
    assert (now.method, now.sketch_width, now.passes) == (then.method, then.sketch_width, then.passes)


@pytest.mark.parametrize(
    ("alignment", "options", "told"),
    [
        (guard_runs.completions(16), {}, False),
        (guard_runs.completions(16, seed=8), {}, True),
        (guard_runs.completions(12), {}, True),
        (guard_runs.completions(16, seed=8), {"reestimate_every": 0}, False),
        (guard_runs.completions(16, seed=8), {"guard_mode": "measure"}, False),
    ],
)
def test_other_samples_than_the_first_estimates_are_told(alignment: Any, options: dict[str, Any], told: bool) -> None:
    """A subspace of one's own data would otherwise give way to one of the bundled refusals without a word."""
    engine = _engine(guard_runs.subspace(rank=2, response_tokens=2), alignment, **options)
    codes = [record["code"] for record in engine.start(4) if record["kind"] == "warning"]
    assert codes == (["other_samples"] if told else [])


@pytest.mark.parametrize(("share", "total", "steps"), [(0.07, 100, 7), (0.28, 25, 7), (0.55, 100, 55), (0.3, 4, 2)])
def test_a_share_of_the_run_is_rounded_up_as_a_number_and_not_as_its_binary_form(
    share: float, total: int, steps: int
) -> None:
    assert GuardConfig(reestimate_every=share).reestimation_interval(total) == steps
