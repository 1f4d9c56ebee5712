from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import DPOTrainer

from loralign.errors import ConfigError, DataError, NonFiniteError
from loralign.geometry import RefinementReport
from loralign.training import GeometryConfig
from tests.evaluation import models
from tests.training import runs

PER_PAIR_LOSSES = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


def _records(path, kind=None):
    lines = [json.loads(line) for line in (path / "geometry.jsonl").read_text().splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]


def test_uniform_weights_are_trls_trainer_bit_for_bit(tmp_path):
    ours = runs.trainer(tmp_path / "ours", GeometryConfig(weighting="uniform", measure_every=1))
    order = list(ours._get_train_sampler())

    class Peer(DPOTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return order

    peer = runs.trainer(tmp_path / "peer", kind=Peer)
    ours.train()
    peer.train()
    got, expected = runs.adapter(ours), runs.adapter(peer)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    logged = [row for row in ours.state.log_history if "rewards/margins" in row]
    assert [row["loss"] for row in logged] == [
        row["loss"] for row in peer.state.log_history if "rewards/margins" in row
    ]


@pytest.mark.parametrize("loss", PER_PAIR_LOSSES)
def test_objectives_own_metrics_average_to_trls(tmp_path, loss):
    smoothing = {"exo_pair": 1e-3, "robust": 0.1}.get(loss, 0.0)
    trainer = runs.trainer(
        tmp_path, GeometryConfig(measure_every=2), loss_type=[loss], label_smoothing=smoothing, max_steps=3
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert len(rows) == 3
    for row in rows:
        margins = [row[f"{name}/margin"] for name in runs.OBJECTIVES]
        assert sum(margins) / 3 == pytest.approx(row["rewards/margins"], abs=1e-6)
        if loss != "sft":  # a mean over the tokens of the batch, not over its pairs
            losses = [row[f"{name}/loss"] for name in runs.OBJECTIVES]
            assert sum(losses) / 3 == pytest.approx(row["loss"], rel=1e-5)


def test_measurements_weights_and_steps_are_recorded(tmp_path):
    trainer = runs.trainer(tmp_path, GeometryConfig(weighting="norm", measure_every=2), max_steps=5)
    trainer.train()
    measured = _records(tmp_path, "measurement")
    assert [record["step"] for record in measured] == [0, 2, 4]
    for record in measured:
        assert sum(record["weights"].values()) == pytest.approx(3)
        assert all(0 < gamma <= 1 for gamma in record["attenuation"].values())
        assert 0 <= record["directional_distortion"] <= 1
        assert 0 <= record["step_distortion"] <= 2
        assert len(record["layer_attenuation"]) == 6
        assert list(record["samples"].values()) == [2.0, 2.0, 2.0]
    assert [record["step"] for record in _records(tmp_path, "step")] == list(range(5))
    logged = trainer.state.log_history[0]
    assert {"weight/honest", "attenuation/harmless", "geometry/step_distortion", "cosine/helpful-honest"} <= set(logged)


def test_weights_act_from_the_step_after_their_measurement(tmp_path):
    plain = runs.trainer(tmp_path / "a", GeometryConfig(weighting="uniform", measure_every=1), max_steps=1)
    norm = runs.trainer(tmp_path / "b", GeometryConfig(weighting="norm", measure_every=1), max_steps=1)
    plain.train()
    norm.train()
    first, second = runs.adapter(plain), runs.adapter(norm)
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = runs.trainer(tmp_path / "c", GeometryConfig(weighting="uniform", measure_every=1), max_steps=2)
    norm = runs.trainer(tmp_path / "d", GeometryConfig(weighting="norm", measure_every=1), max_steps=2)
    plain.train()
    norm.train()
    first, second = runs.adapter(plain), runs.adapter(norm)
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_accumulated_micro_batches_give_the_statistics_of_the_whole_batch(tmp_path):
    whole = runs.trainer(tmp_path / "whole", GeometryConfig(measure_every=1), max_steps=2)
    parts = runs.trainer(
        tmp_path / "parts",
        GeometryConfig(measure_every=1),
        max_steps=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
    )
    whole.train()
    parts.train()
    for left, right in zip(
        _records(tmp_path / "whole", "measurement"), _records(tmp_path / "parts", "measurement"), strict=True
    ):
        for space in ("full", "accessible", "euclidean"):
            assert left["gradient_norm"][space] == pytest.approx(right["gradient_norm"][space], rel=1e-4)
        assert left["weights"] == pytest.approx(right["weights"], rel=1e-4)
    first, second = runs.adapter(whole), runs.adapter(parts)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["condition", "accumulated", "gradient", "balanced"])
def test_refinement_in_training_is_recorded_and_keeps_the_loss(tmp_path, mode):
    config = GeometryConfig(refine_every=2, refine_mode=mode, measure_every=0, refine_tolerance=1e-3)
    trainer = runs.trainer(tmp_path, config, max_steps=4, learning_rate=1e-3)
    trainer.train()
    refined = _records(tmp_path, "refinement")
    assert [record["step"] for record in refined] == [1, 3]
    for record in refined:
        assert record["mode"] == mode
        assert record["function_change"] <= 1e-3**0.5 + 1e-6
        assert {"name", "spectrum", "energy_moved", "function_change"} <= set(record["layers"][0])
    assert set(RefinementReport.__dataclass_fields__) <= set(refined[0])
    losses = [row["loss"] for row in trainer.state.log_history if "rewards/margins" in row]
    assert max(losses) < 1.5 * losses[0]


def test_refinement_at_the_start_raises_the_attenuation(tmp_path):
    plain = runs.trainer(tmp_path / "plain", GeometryConfig(measure_every=1), max_steps=1)
    informed = runs.trainer(tmp_path / "informed", GeometryConfig(measure_every=1, refine_at_start=True), max_steps=1)
    plain.train()
    informed.train()
    before = _records(tmp_path / "plain", "measurement")[0]["attenuation"]
    after = _records(tmp_path / "informed", "measurement")[0]["attenuation"]
    assert all(after[name] > 1.5 * before[name] for name in before)
    start = _records(tmp_path / "informed", "refinement")[0]
    assert start["step"] == -1
    assert start["function_change"] == 0
    first = next(row["loss"] for row in plain.state.log_history if "rewards/margins" in row)
    assert next(row["loss"] for row in informed.state.log_history if "rewards/margins" in row) == pytest.approx(first)


@pytest.mark.parametrize("direction", ["policy_reference", "reference_policy"])
def test_preservation_is_one_more_objective(tmp_path, direction):
    texts = runs.pairs(8).map(lambda row: {"messages": row["prompt"] + row["chosen"]}).select_columns(["messages"])
    drift = {}
    for weight in (0.0, 4.0):
        config = GeometryConfig(
            weighting="norm", measure_every=1, preservation_weight=weight, preservation_direction=direction
        )
        trainer = runs.trainer(tmp_path / str(weight), config, max_steps=6, extra={"preservation_dataset": texts})
        trainer.train()
        rows = trainer.state.log_history
        drift[weight] = sum(
            float(factor.abs().sum()) for name, factor in runs.adapter(trainer).items() if "lora_B" in name
        )
        assert ("preservation/loss" in rows[3]) == (weight > 0)
    measured = _records(tmp_path / "4.0", "measurement")
    assert measured[-1]["objectives"] == [*runs.OBJECTIVES, "preservation"]
    assert measured[-1]["gradient_norm"]["full"]["preservation"] > 0
    # At the start policy and reference agree, so preservation has no gradient and keeps its target weight.
    assert measured[0]["weights"]["preservation"] == 4.0
    assert drift[4.0] < drift[0.0]


def test_evaluation_reports_each_objective(tmp_path):
    trainer = runs.trainer(tmp_path, GeometryConfig(measure_every=0), extra={"eval_dataset": runs.pairs(12, seed=9)})
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    row = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert {f"eval_{name}/accuracy" for name in runs.OBJECTIVES} <= set(row)


def test_a_loss_that_is_not_finite_stops_with_step_and_objective(tmp_path):
    trainer = runs.trainer(tmp_path, GeometryConfig(measure_every=1), max_steps=3)
    original = trainer.compute_ref_log_probs

    def poisoned(model, inputs):
        chosen, rejected = original(model, inputs)
        if trainer.state.global_step == 2:
            chosen = chosen.clone()
            chosen[2:4] = float("nan")
        return chosen, rejected

    trainer.compute_ref_log_probs = poisoned
    with pytest.raises(NonFiniteError, match=r"step 2: the loss of honest is not finite"):
        trainer.train()


def test_a_gradient_that_is_not_finite_names_its_objective(tmp_path):
    trainer = runs.trainer(tmp_path, GeometryConfig(measure_every=0), max_steps=2)
    module = trainer.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")

    def poison(module, arguments, output):
        if not output.requires_grad:
            return
        # Rows are [chosen; rejected] of pairs sorted helpful, helpful, honest, honest, harmless, harmless.
        output.register_hook(lambda g: g.index_fill(0, torch.tensor([4]), float("inf")))

    module.register_forward_hook(poison)
    with pytest.raises(NonFiniteError, match=r"step 0: the gradient of harmless is not finite"):
        trainer.train()


def test_wrong_use_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'aot' compares pairs"):
        runs.trainer(tmp_path, loss_type=["aot"])
    with pytest.raises(DataError, match="no 'objective' column"):
        runs.trainer(tmp_path, dataset=runs.pairs().remove_columns("objective"))
    with pytest.raises(ConfigError, match="'kind' is no objective"):
        runs.trainer(tmp_path, extra={"target_weights": {"kind": 1.0}})
    with pytest.raises(ConfigError, match="must be positive"):
        runs.trainer(tmp_path, extra={"target_weights": {"honest": 0.0}})
    with pytest.raises(ConfigError, match="preservation needs texts"):
        runs.trainer(tmp_path, GeometryConfig(preservation_weight=1.0))
    with pytest.raises(ConfigError, match="refine_mode: 'x'"):
        GeometryConfig(refine_mode="x")
    with pytest.raises(ConfigError, match="measure_every: -1"):
        GeometryConfig(measure_every=-1)
    with pytest.raises(ConfigError, match="did you mean 'geo'"):
        GeometryConfig(weighting="gei")


class Interrupt(TrainerCallback):
    """Cuts a training off in the middle of a step's gradients, once."""

    def __init__(self) -> None:
        self.left = True

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.left and state.global_step == 2:
            self.left = False
            raise KeyboardInterrupt


def test_a_training_that_was_cut_off_leaves_nothing_in_the_way_of_the_next(tmp_path):
    """In a notebook the same trainer trains again; old hooks would cut the new weights out of the graph."""
    config = GeometryConfig(weighting="norm", measure_every=1)
    trainer = runs.trainer(tmp_path / "again", config)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(start[name])
    trainer.model.zero_grad()
    # Transformers keeps these and their moments.
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    once = runs.trainer(tmp_path / "once", config)
    once.train()
    again, expected = runs.adapter(trainer), runs.adapter(once)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in trainer.model.modules()]
    assert sum(hooks) == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in once.model.modules())


def test_a_training_that_was_cut_off_leaves_the_model_as_it_was(tmp_path):
    """Another trainer on the same model, or the model alone, then finds no hook of the first."""
    trainer = runs.trainer(tmp_path, GeometryConfig(weighting="norm", measure_every=1))
    trainer.add_callback(Interrupt())

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trainer.model.modules()]

    before = hooks()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    # Once before any training, accelerate puts hooks of its own on the model.
    assert before == hooks()
    assert trainer.geometry_callback.engine is None


def test_the_best_model_is_found_under_the_name_that_its_checkpoint_has(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = runs.trainer(
        tmp_path, GeometryConfig(), extra={"eval_dataset": runs.pairs(6, seed=4)}, save_total_limit=2, **options
    )
    trainer.train()
    # The loss falls, and the greatest was asked for.
    best = Path(trainer.state.best_model_checkpoint)
    assert best == tmp_path / "checkpoint-1"
    told = json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())["best_model_checkpoint"]
    assert told == str(best)
    kept = load_file(best / "adapter_model.safetensors")
    found = {name.replace(".default", ""): value for name, value in runs.adapter(trainer).items()}
    assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_an_adapter_in_bfloat16_is_measured_as_one_in_float32(tmp_path):
    """As TRL keeps that of a quantised model; the layers are wide enough for bfloat16's epsilon to add up to one."""

    def measured(name, dtype):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=models.VOCABULARY,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=256,
            pad_token_id=0,
        )
        trainer = runs.trainer(
            tmp_path / name,
            GeometryConfig(measure_every=1, weighting="norm"),
            extra={"model": LlamaForCausalLM(config)},
            max_steps=1,
        )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        trainer.train()
        return _records(tmp_path / name, "measurement")[0]["attenuation"]

    found, expected = measured("narrow", torch.bfloat16), measured("wide", torch.float32)
    assert all(0.05 < value < 1 for value in expected.values())
    assert found == pytest.approx(expected, rel=0.1)
