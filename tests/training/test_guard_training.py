"""The guard inside a training run: where its gradients go, what it holds, what it leaves alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from loralign.data.completions import Completion
from loralign.guard import PenaltyWeights, ProbeSet, update_shares
from loralign.lora import canonical_name, lora_layers
from loralign.training import GuardCallback, GuardConfig, GuardData, GuardedSFTTrainer, GuardEngine
from loralign.training.record_log import RecordLog
from tests.evaluation import models
from tests.training import guard_runs, runs
from tests.training.guard_runs import PROBE, STRONG, StopAt, records


class Gradients(TrainerCallback):
    """Keeps the gradients that every optimiser step sees."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def test_measuring_drift_leaves_the_run_as_trl_makes_it(tmp_path: Path) -> None:
    """A probe that drew random numbers or left the model in evaluation mode would change the adapter."""
    plain = guard_runs.train(guard_runs.trainer(tmp_path / "a", kind=SFTTrainer))
    probed = guard_runs.trainer(tmp_path / "b", GuardConfig(probe_every=1), data=PROBE)
    found = guard_runs.train(probed)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    drifts = [record["kl"] for record in records(tmp_path / "b", "probe")]
    assert len(drifts) == 5
    assert drifts[0] == 0.0
    assert drifts[-1] > 0


def test_measure_mode_holds_nothing_but_knows_the_share(tmp_path: Path) -> None:
    plain = guard_runs.train(guard_runs.trainer(tmp_path / "a", kind=SFTTrainer))
    held = guard_runs.subspace()
    measured = guard_runs.trainer(
        tmp_path / "b", GuardConfig(guard_mode="measure", probe_every=1), held=held, data=PROBE
    )
    found = guard_runs.train(measured)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    shares = [record["share"] for record in records(tmp_path / "b", "probe")]
    layers = lora_layers(measured.model)
    updates = [(layer.scaling * layer.B @ layer.A).detach() for layer in layers]
    bases = [held.layers[canonical_name(layer.name)].basis for layer in layers]
    inside = sum(float((basis.mT @ update).square().sum()) for basis, update in zip(bases, updates, strict=True))
    assert shares[0] == 0.0
    assert shares[-1] == pytest.approx(inside / sum(float(update.square().sum()) for update in updates), rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradients_are_those_of_the_task_plus_the_penalty(tmp_path: Path, accumulation: int) -> None:
    """Once per step, whatever the accumulation: a penalty seeded per micro-batch or divided by it fails."""
    held = guard_runs.subspace()
    guarded = Gradients()
    options: dict[str, Any] = {
        "per_device_train_batch_size": 6 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": 0.0,
        "max_steps": 2,
        "double": True,
    }
    one = guard_runs.trainer(
        tmp_path / "a", GuardConfig(**STRONG), held=held, callbacks=[guarded], optim="sgd", **options
    )
    factors: list[dict[str, torch.Tensor]] = []
    one.add_callback(_Keep(factors))
    one.train()
    free = Gradients()
    other = guard_runs.trainer(tmp_path / "b", kind=SFTTrainer, callbacks=[free, _Put(factors)], optim="sgd", **options)
    other.train()
    layers = {layer.name: layer for layer in lora_layers(other.model)}
    engine = GuardEngine(other.model, held, GuardConfig(**STRONG))
    _put(other.model, factors[1])
    assert engine.hold is not None
    penalty = engine.hold.penalty.evaluate(engine.weights).gradients
    assert penalty is not None
    for layer, (grad_a, grad_b) in zip(layers.values(), penalty, strict=True):
        for factor, gradient in (("lora_A", grad_a), ("lora_B", grad_b)):
            name = f"{layer.name}.{factor}.default.weight"
            expected = free.seen[1][name] + gradient
            torch.testing.assert_close(guarded.seen[1][name], expected, rtol=1e-8, atol=1e-12)
            assert gradient.abs().max() > 0


class _Keep(TrainerCallback):
    def __init__(self, factors: list[dict[str, torch.Tensor]]) -> None:
        self.factors = factors

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.factors.append({name: p.detach().clone() for name, p in named if p.requires_grad})


class _Put(TrainerCallback):
    def __init__(self, factors: list[dict[str, torch.Tensor]]) -> None:
        self.factors = factors

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _put(kwargs["model"], self.factors[state.global_step])


def _put(model: Any, factors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in factors.items():
            model.get_parameter(name).copy_(value)


def test_penalty_lowers_the_share_and_the_drift(tmp_path: Path) -> None:
    held = guard_runs.subspace(rank=6)
    found = {}
    for name, options in (("measure", {"guard_mode": "measure"}), ("held", {"lambda_alignment": 300.0})):
        config = GuardConfig(**options, lambda_stability=0.0, lambda_collision=0.0, probe_every=1)
        one = guard_runs.trainer(tmp_path / name, config, held=held, data=PROBE, max_steps=8)
        one.train()
        found[name] = records(tmp_path / name, "probe")[-1]
    assert found["held"]["share"] < 0.5 * found["measure"]["share"]


def test_projection_leaves_nothing_in_the_subspace(tmp_path: Path) -> None:
    held = guard_runs.subspace()
    one = guard_runs.trainer(tmp_path, GuardConfig(guard_mode="project"), held=held)
    one.train()
    layers = lora_layers(one.model)
    shares = update_shares(layers, held.match(layers))
    assert float(shares.max()) < 1e-10
    assert all(bool(layer.B.any()) for layer in layers)


def test_decoupled_penalty_stays_out_of_the_gradients(tmp_path: Path) -> None:
    """In the loss it would be clipped and normalised by Adam; decoupled it acts on the factors alone."""
    held = guard_runs.subspace()
    seen = Gradients()
    config = GuardConfig(**STRONG, guard_placement="decoupled")
    one = guard_runs.trainer(tmp_path / "a", config, held=held, callbacks=[seen], max_steps=1)
    found = guard_runs.train(one)
    free = Gradients()
    plain = guard_runs.train(guard_runs.trainer(tmp_path / "b", kind=SFTTrainer, callbacks=[free], max_steps=1))
    assert all(torch.equal(seen.seen[0][name], free.seen[0][name]) for name in free.seen[0])
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_budget_raises_the_weights_until_drift_is_within(tmp_path: Path) -> None:
    held = guard_runs.subspace(rank=8)
    found = {}
    for name, options in (("free", {"guard_mode": "measure"}), ("tight", {"guard_mode": "project"})):
        config = GuardConfig(**options, probe_every=1, drift_budget=None if name == "free" else 1e-3)
        one = guard_runs.trainer(tmp_path / name, config, held=held, data=PROBE, max_steps=12)
        one.train()
        found[name] = records(tmp_path / name, "probe")
    multipliers = [record["multiplier"] for record in found["tight"]]
    assert multipliers[-1] > 2 * multipliers[0]
    assert found["tight"][-1]["kl"] < found["free"][-1]["kl"]


@pytest.mark.parametrize(
    "options",
    [
        {"drift_budget": 0.02, "probe_every": 2, "reestimate_every": 2, "overlap_rows": 0.5},
        {"guard_mode": "project", "drift_budget": 0.02, "probe_every": 1},
        {"guard_placement": "decoupled", "task_curvature": "diagonal"},
    ],
    ids=["loss", "project", "decoupled"],
)
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, options: dict[str, Any]) -> None:
    """Weights, multiplier, drawn rows and subspace are part of the checkpoint; leaving one out changes the adapter."""
    held = guard_runs.subspace()
    data = GuardData(probe=PROBE.probe, alignment=guard_runs.completions(16), task=guard_runs.completions(8, seed=5))

    def make(directory: Path) -> Any:
        config = GuardConfig(**STRONG, **options)
        saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
        return guard_runs.trainer(directory, config, held=held, data=data, **saving)

    whole = guard_runs.train(make(tmp_path / "whole"))
    log = (tmp_path / "whole/guard.jsonl").read_text()
    cut = make(tmp_path / "cut")
    cut.add_callback(StopAt(4))
    cut.train()
    resumed = guard_runs.train(make(tmp_path / "cut"), resume_from_checkpoint=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert (tmp_path / "cut/guard.jsonl").read_text() == log


def test_guard_stands_beside_the_geometry(tmp_path: Path) -> None:
    """Multi-objective DPO with a guard: both callbacks act, and the update leaves the subspace."""
    held = guard_runs.subspace()
    one = runs.trainer(tmp_path, lora={"target_modules": guard_runs.MODULES})
    GuardCallback(held, GuardConfig(guard_mode="project", probe_every=2), PROBE).install(one)
    one.train()
    layers = lora_layers(one.model)
    assert float(update_shares(layers, held.match(layers)).max()) < 1e-10
    assert (tmp_path / "geometry.jsonl").exists()
    assert len(records(tmp_path, "probe")) == 3


def test_callback_among_callbacks_is_enough(tmp_path: Path) -> None:
    held = guard_runs.subspace()
    one = guard_runs.trainer(
        tmp_path, kind=SFTTrainer, callbacks=[GuardCallback(held, GuardConfig(guard_mode="project"))]
    )
    one.train()
    layers = lora_layers(one.model)
    assert float(update_shares(layers, held.match(layers)).max()) < 1e-10


def test_log_has_the_guards_numbers(tmp_path: Path) -> None:
    held = guard_runs.subspace()
    one = guard_runs.trainer(tmp_path, GuardConfig(**STRONG, probe_every=1), held=held, data=PROBE)
    one.train()
    last = [entry for entry in one.state.log_history if "loss" in entry][-1]
    assert {"guard/alignment", "guard/overlap", "guard/multiplier", "drift/kl", "drift/share"} <= set(last)
    assert [record["step"] for record in records(tmp_path, "train")] == [0, 1, 2, 3]


def test_held_back_loss_is_watched(tmp_path: Path) -> None:
    """With a rate that ruins the task while the budget holds, the run is told to be safe but useless."""
    held = guard_runs.subspace(rank=3)
    data = GuardData(probe=PROBE.probe, held_back=guard_runs.completions(6, seed=11))
    config = GuardConfig(drift_budget=50.0, probe_every=1)
    one = guard_runs.trainer(tmp_path, config, held=held, data=data, learning_rate=2.0, max_steps=6)
    one.train()
    losses = [record["loss"] for record in records(tmp_path, "task")]
    assert losses[-1] > losses[0] + 0.02
    assert "safe_but_useless" in [record["code"] for record in records(tmp_path, "warning")]


def test_skipped_step_is_not_acted_on() -> None:
    """What a gradient scaler has skipped must not be followed by a penalty's step."""
    held = guard_runs.subspace()
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    engine = GuardEngine(model, held, GuardConfig(guard_mode="project"))
    with torch.no_grad():
        for layer in engine.layers:
            layer.B.normal_()
    before = [layer.B.detach().clone() for layer in engine.layers]
    assert engine.finish_step(0, stepped=False) == []
    assert all(torch.equal(layer.B, factor) for layer, factor in zip(engine.layers, before, strict=True))
    engine.finish_step(1)
    assert not any(torch.equal(layer.B, factor) for layer, factor in zip(engine.layers, before, strict=True))


def test_a_budget_raises_every_weight() -> None:
    """What drifts outside of the subspace only the stability term can hold."""
    config = GuardConfig(lambda_alignment=2.0, lambda_stability=0.5, lambda_collision=0.25)
    assert config.penalty_weights(3.0) == PenaltyWeights(6.0, 1.5, 0.75)
    assert GuardConfig().penalty_weights() == PenaltyWeights()


@pytest.mark.parametrize(
    ("options", "steps", "rate"),
    [({"probe_every": 2}, 6, 1.0), ({"probe_every": 1}, 30, 0.2), ({"probe_every": 2, "control_rate": 0.3}, 6, 0.3)],
)
def test_the_budget_is_followed_at_a_rate_for_the_length_of_the_run(
    options: dict[str, Any], steps: int, rate: float
) -> None:
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    engine = GuardEngine(model, guard_runs.subspace(), GuardConfig(drift_budget=1.0, **options), PROBE)
    engine.start(steps)
    engine.finish_step(options["probe_every"] - 1)
    # Nothing has moved, so that the drift is a whole budget below it.
    assert engine.multiplier == pytest.approx(1.02 * math.exp(-rate) - 0.02)


@pytest.mark.parametrize("placement", ["loss", "decoupled"])
def test_a_tight_budget_is_met_although_drift_lies_outside_of_the_subspace(tmp_path: Path, placement: Any) -> None:
    found = {}
    for name, budget in (("free", None), ("tight", 0.02)):
        config = GuardConfig(
            guard_placement=placement, drift_budget=budget, probe_every=1, control_rate=1.0, reestimate_every=0
        )
        held = guard_runs.subspace(rank=1)
        guard_runs.trainer(tmp_path / name, config, held=held, data=PROBE, max_steps=40).train()
        found[name] = records(tmp_path / name, "probe")[-1]
    assert found["free"]["kl"] > 0.1
    assert found["tight"]["kl"] < 0.03


def test_kind_of_trainer() -> None:
    assert issubclass(GuardedSFTTrainer, SFTTrainer)


@pytest.mark.parametrize(("tokens", "wanted"), [(2, 2), (1, 1), (0, None)])
def test_drift_is_measured_on_the_openings(tmp_path: Path, tokens: int, wanted: int | None) -> None:
    """The log of a run and a probe of its own agree: the engine that ignored the setting would log another drift."""
    one = guard_runs.trainer(tmp_path, GuardConfig(probe_every=1, probe_tokens=tokens), data=PROBE)
    start = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    one.train()
    probe = ProbeSet(PROBE.probe, pad_id=PROBE.pad_id, response_tokens=wanted)
    now = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    _load(one.model, start)
    probe.cache(one.model)
    _load(one.model, now)
    assert records(tmp_path, "probe")[-1]["kl"] == pytest.approx(probe.measure(one.model).kl, rel=1e-5)


def _load(model: Any, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def test_a_resumed_run_knows_the_start_of_what_else_the_adapter_trains(tmp_path: Path) -> None:
    """A head among ``modules_to_save`` is no factor that zero takes out."""

    def make(directory: Path) -> Any:
        options = {"save_strategy": "steps", "save_steps": 2, "lora": {"modules_to_save": ["lm_head"]}}
        return guard_runs.trainer(directory, GuardConfig(probe_every=1), data=PROBE, **options)

    make(tmp_path / "whole").train()
    cut = make(tmp_path / "cut")
    cut.add_callback(StopAt(3))
    cut.train()
    make(tmp_path / "cut").train(resume_from_checkpoint=True)
    drifts = [[one["kl"] for one in records(tmp_path / name, "probe")] for name in ("whole", "cut")]
    assert drifts[0][-1] > 1e-3
    assert drifts[1] == pytest.approx(drifts[0], rel=1e-4)


def test_a_run_that_is_made_longer_estimates_again_in_its_new_part(tmp_path: Path) -> None:
    data = GuardData(alignment=guard_runs.completions(16))
    for steps in (4, 8):
        one = guard_runs.trainer(
            tmp_path,
            GuardConfig(reestimate_every=0.25),
            held=guard_runs.subspace(),
            data=data,
            max_steps=steps,
            save_strategy="steps",
            save_steps=4,
        )
        one.train(resume_from_checkpoint=steps == 8)
    assert [record["step"] for record in records(tmp_path, "reestimate")] == [0, 1, 2, 5]


def test_a_random_subspace_stays_random(tmp_path: Path) -> None:
    """It is the control: estimated again it would be what it is compared with."""
    data = GuardData(alignment=guard_runs.completions(16))
    held = guard_runs.subspace().random_like(0)
    one = guard_runs.trainer(tmp_path, GuardConfig(reestimate_every=1), held=held, data=data)
    one.train()
    assert records(tmp_path, "reestimate") == []


def test_the_norm_of_a_skipped_step_is_left_out_of_the_log(tmp_path: Path) -> None:
    callback = GuardCallback(None)
    callback.log = RecordLog(tmp_path / "guard.jsonl")
    logs = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": float("inf")}
    callback.on_log(None, TrainerState(global_step=1), None, logs=logs)
    assert records(tmp_path, "train") == [{"kind": "train", "step": 0, "loss": 1.5, "learning_rate": 1e-3}]


def test_two_means_of_the_tasks_loss_are_not_compared(tmp_path: Path) -> None:
    told: list[float] = []
    for held_back in ([], guard_runs.completions(2)):
        callback = GuardCallback(None, data=GuardData(held_back=held_back))
        callback.engine = SimpleNamespace(task_loss=lambda step, loss: told.append(loss) or [])
        callback.on_evaluate(None, TrainerState(global_step=1), None, metrics={"eval_loss": 2.0})
    assert told == [2.0]


def test_the_curvatures_samples_keep_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(
        "loralign.training.guard_engine.estimate_curvature", lambda *_, max_length, **__: taken.append(max_length) or []
    )
    long = Completion(list(range(3, 303)), 290)
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    engine = GuardEngine(
        model, guard_runs.subspace(), GuardConfig(task_curvature="diagonal"), GuardData(task=[long, *PROBE.probe])
    )
    engine._task_curvature()
    assert taken == [300]
