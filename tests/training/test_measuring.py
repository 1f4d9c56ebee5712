"""Measurements without training."""

from __future__ import annotations

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from loralign.errors import ConfigError
from loralign.training import GeometryConfig
from loralign.training.engine import GeometryEngine
from tests.evaluation import models
from tests.training import runs


def test_both_readings_are_of_the_same_gradients(tmp_path):
    trainer = runs.trainer(tmp_path, GeometryConfig(exact_gradients=True))
    statistics = trainer.measure_geometry(batches=2)
    found = trainer.measure_without_shared(3, batches=2)
    torch.testing.assert_close(found.whole.layer_full, statistics.layer_full)
    assert found.whole.samples.tolist() == statistics.samples.tolist() == [4, 4, 4]
    nothing = trainer.measure_without_shared(0, batches=2)
    torch.testing.assert_close(nothing.attenuation(), statistics.attenuation())
    more = trainer.measure_without_shared(6, batches=2)
    assert (nothing.share() < found.share()).all()
    assert (found.share() < more.share()).all()


def test_a_sketch_comes_near_the_exact_reading(tmp_path):
    exact, sketched = (
        runs.trainer(tmp_path / str(flag), GeometryConfig(exact_gradients=flag)).measure_without_shared(3, batches=2)
        for flag in (True, False)
    )
    for read in ("attenuation", "share"):
        torch.testing.assert_close(getattr(sketched, read)(), getattr(exact, read)(), rtol=0.1, atol=0)


def test_layers_that_see_flattened_tokens_know_their_pairs(tmp_path, monkeypatch):
    """The batch is [chosen; rejected] with one id per pair; the same with one id per row."""
    config = OPTConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        dropout=0.0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    trainer = runs.trainer(
        tmp_path,
        GeometryConfig(exact_gradients=True),
        extra={"model": OPTForCausalLM(config)},
        lora={"target_modules": ["fc1", "fc2"]},
    )
    per_pair = trainer.measure_geometry()
    begin = GeometryEngine.begin_batch
    monkeypatch.setattr(
        GeometryEngine, "begin_batch", lambda self, ids, **options: begin(self, ids.repeat(2), **options)
    )
    per_row = trainer.measure_geometry()
    torch.testing.assert_close(per_pair.layer_full, per_row.layer_full)
    torch.testing.assert_close(per_pair.layer_accessible, per_row.layer_accessible)
    assert (per_pair.samples * 2).tolist() == per_row.samples.tolist() == [4, 4, 4]


def test_it_is_no_training(tmp_path):
    trainer = runs.trainer(tmp_path, GeometryConfig())
    before = runs.adapter(trainer)
    trainer.measure_without_shared(2)
    assert all(torch.equal(before[name], factor) for name, factor in runs.adapter(trainer).items())
    assert all(p.grad is None for p in trainer.model.parameters())
    assert trainer.geometry_callback.engine is None


def test_too_many_directions_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    trainer = runs.trainer(tmp_path, GeometryConfig(sketch_size=4))
    monkeypatch.setattr(trainer, "_accumulate_gradients", lambda count: pytest.fail("measured"))
    with pytest.raises(ConfigError, match="the sketch 4 columns"):
        trainer.measure_without_shared(5)
    assert trainer.geometry_callback.engine is None
