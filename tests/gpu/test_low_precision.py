"""Bases in bfloat16 and in 4 bits, with the factors that learn in float32 or as TRL leaves them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from loralign.guard import AlignmentSubspace, ProbeSet, estimate_fisher, repair
from loralign.lora import base_weight_rows, lora_layers
from loralign.models import load_model
from loralign.training import GeometryConfig, GuardConfig, GuardData, GuardedSFTTrainer
from tests.evaluation import models
from tests.gpu import both
from tests.training import guard_runs, runs

pytestmark = pytest.mark.gpu
DATA = GuardData(
    probe=guard_runs.PROBE.probe, alignment=guard_runs.completions(16), task=guard_runs.completions(8, seed=5)
)
GUARDS: dict[str, dict[str, Any]] = {
    "penalty": {**guard_runs.STRONG, "task_curvature": "diagonal"},
    "sampled rows": {**guard_runs.STRONG, "overlap_rows": 0.5, "drift_budget": 0.5, "reestimate_every": 1},
    "decoupled": {**guard_runs.STRONG, "guard_placement": "decoupled"},
    "project": {"guard_mode": "project"},
}
needs_four_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs loralign[quantization]"
)


def _estimate(model: Any) -> AlignmentSubspace:
    return estimate_fisher(
        model,
        guard_runs.completions(16),
        rank=3,
        response_tokens=2,
        target_modules=guard_runs.MODULES,
        min_agreement=0.0,
        show_progress=False,
    )


def _guarded(
    directory: Path, device: torch.device, model: Any, held: AlignmentSubspace, guard: str, **options: Any
) -> Any:
    return GuardedSFTTrainer(
        model=model,
        args=guard_runs.sft_config(directory, **{"max_steps": 2, **both.placement(device), **options}),
        train_dataset=guard_runs.samples().remove_columns("label"),
        processing_class=models.character_tokenizer(),
        peft_config=LoraConfig(**guard_runs.LORA),
        subspace=held,
        guard=GuardConfig(**{"reestimate_every": 0, "probe_every": 1, **GUARDS[guard]}),
        guard_data=DATA,
    )


def _aligned(directory: Path, device: torch.device, model: Any, **options: Any) -> Any:
    geometry = GeometryConfig(measure_every=1, refine_at_start=True, refine_every=1)
    return runs.trainer(
        directory, geometry, extra={"model": model}, **{"max_steps": 2, **both.placement(device), **options}
    )


def _train(trainer: Any, device: torch.device) -> None:
    trainer.train()
    both.assert_trained(trainer, device, 2)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("guard", GUARDS)
def test_guarded_training_on_a_bfloat16_base(tmp_path: Path, device: torch.device, guard: str, autocast: bool) -> None:
    model = models.build("llama", dtype=torch.bfloat16).to(device)
    trainer = _guarded(tmp_path, device, model, _estimate(model), guard, bf16=autocast)
    assert {layer.B.dtype for layer in lora_layers(trainer.model)} == {torch.float32}
    _train(trainer, device)
    assert both.records(tmp_path / "guard.jsonl", "probe")[-1]["kl"] > 0


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_alignment_on_a_bfloat16_base(tmp_path: Path, device: torch.device, autocast: bool) -> None:
    model = models.build("llama", dtype=torch.bfloat16).to(device)
    trainer = _aligned(tmp_path, device, model, bf16=autocast)
    assert {layer.B.dtype for layer in lora_layers(trainer.model)} == {torch.float32}
    _train(trainer, device)
    measured = both.records(tmp_path / "geometry.jsonl", "measurement")
    assert all(0 < gamma <= 1 for record in measured for gamma in record["attenuation"].values())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on the disk, of widths that 4-bit blocks of 64 values divide."""
    directory = tmp_path_factory.mktemp("saved") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    models.character_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def four_bit(saved: Path, device: torch.device, request: pytest.FixtureRequest) -> Any:
    """Load the model in 4 bits, which without being told goes to the GPU."""
    if device.type == "cpu":
        pytest.skip("what a CPU quantises is tested elsewhere")

    def load() -> Any:
        model = load_model(str(saved), load_in_4bit=True, dtype=request.param).model
        assert {parameter.device for parameter in model.parameters()} == {device}
        return model

    return load


both_products = pytest.mark.parametrize("four_bit", ["float32", "bfloat16"], indirect=True)


@needs_four_bits
@both_products
@pytest.mark.parametrize("guard", GUARDS)
def test_guarded_training_on_a_four_bit_base(tmp_path: Path, device: torch.device, four_bit: Any, guard: str) -> None:
    model = four_bit()
    held = _estimate(model)
    assert all(bool(layer.basis.isfinite().all()) for layer in held.layers.values())
    trainer = _guarded(tmp_path, device, model, held, guard)
    assert all(type(layer.base).__name__ == "Linear4bit" for layer in lora_layers(trainer.model))
    _train(trainer, device)


@needs_four_bits
@both_products
def test_alignment_on_a_four_bit_base(tmp_path: Path, device: torch.device, four_bit: Any) -> None:
    trainer = _aligned(tmp_path, device, four_bit())
    assert all(type(layer.base).__name__ == "Linear4bit" for layer in lora_layers(trainer.model))
    _train(trainer, device)


@needs_four_bits
@both_products
def test_rows_of_a_four_bit_weight_are_those_that_the_layer_applies(
    tmp_path: Path, device: torch.device, four_bit: Any
) -> None:
    trainer = _aligned(tmp_path, device, four_bit())
    for layer in lora_layers(trainer.model):
        height, width = layer.shape
        # The layer computes in this type, in which products with the identity are exact.
        eye = torch.eye(width, device=device, dtype=layer.base.compute_dtype)
        with torch.no_grad():
            whole = layer.base(eye).mT.float()
        for start, stop in ((0, height), (3, 17), (height - 1, height)):
            torch.testing.assert_close(base_weight_rows(layer, start, stop), whole[start:stop], rtol=1e-2, atol=1e-3)


@needs_four_bits
@both_products
def test_a_four_bit_model_is_measured_and_repaired(tmp_path: Path, device: torch.device, four_bit: Any) -> None:
    model = four_bit()
    held = _estimate(model)
    trainer = _guarded(tmp_path, device, model, held, "project")
    probe = ProbeSet(guard_runs.completions(6))
    probe.cache(trainer.model)
    models.perturb(trainer.model, "default", 0.1, seed=5)
    drift = probe.measure(trainer.model).kl
    assert drift > 0
    report = repair(trainer.model, held, measure=lambda: probe.measure(trainer.model).kl)
    assert report.drift_before == pytest.approx(drift, rel=1e-2)
    assert report.share_after is not None
    assert report.share_after < 1e-4
