"""The callback on trainers that know nothing of it: what it refuses, and what a cut-off training leaves behind."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from loralign.errors import ConfigError
from loralign.training import GeometryCallback, GeometryConfig
from tests.evaluation import models
from tests.training import runs
from tests.training.test_trainer import Interrupt


def _model():
    return get_peft_model(models.build("llama"), LoraConfig(**runs.LORA))


def _texts(label="objective"):
    rows = [
        {"messages": pair["prompt"] + pair["chosen"], label: pair["objective"]}
        if index != 1
        else {"messages": pair["prompt"] + pair["chosen"], label: None}
        for index, pair in enumerate(runs.pairs(24))
    ]
    return Dataset.from_list(rows)


def _sft(output, dataset=None, model=None, **options):
    with warnings.catch_warnings():
        # TRL sets a field that transformers has renamed, and would rather have another attention for padding_free.
        warnings.simplefilter("ignore", FutureWarning)
        settings = {**runs.SETTINGS, "output_dir": str(output), "remove_unused_columns": False, "max_length": 96}
        return SFTTrainer(
            model=model or _model(),
            args=SFTConfig(**{**settings, **options}),
            train_dataset=_texts() if dataset is None else dataset,
            processing_class=models.character_tokenizer(),
        )


def _of_samples(output, count, **options):
    """The transformers library's own trainer with a loss that is a mean over samples."""

    class SampleMean(Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, models.VOCABULARY, (count, 8), generator=generator).tolist()
    rows = [{"input_ids": row, "labels": row, "objective": runs.OBJECTIVES[i % 3]} for i, row in enumerate(ids)]

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([example[key] for example in examples]) for key in ("input_ids", "labels")}

    settings = {**runs.SETTINGS, "output_dir": str(output), "remove_unused_columns": False}
    del settings["gradient_checkpointing"]
    return SampleMean(
        model=_model(),
        args=TrainingArguments(**{**settings, **options}),
        train_dataset=Dataset.from_list(rows),
        data_collator=collate,
    )


def test_labels_that_would_not_reach_the_collator_are_refused(tmp_path):
    def install(**options):
        trainer = _sft(tmp_path, **options)
        before = trainer.data_collator
        try:
            GeometryCallback(runs.OBJECTIVES).install(trainer)
        finally:
            assert (trainer.data_collator is before) != any(
                isinstance(one, GeometryCallback) for one in trainer.callback_handler.callbacks
            )

    with pytest.raises(ConfigError, match=r"^remove_unused_columns: the trainer drops the 'objective' column"):
        install(remove_unused_columns=True)
    with pytest.raises(ConfigError, match=r"no 'objective' column \(.*install\(trainer, column\)"):
        install(dataset=_texts("kind"))
    with pytest.raises(ConfigError, match=r"^packing: .* several samples in one row"):
        install(packing=True, packing_strategy="wrapped")
    # One row without a label is no fault.
    install()


@pytest.mark.filterwarnings("ignore")
def test_rows_that_hold_several_samples_are_refused(tmp_path):
    trainer = _sft(tmp_path, padding_free=True, max_length=None)
    with pytest.raises(ConfigError, match=r"^padding_free: .* several samples in one row"):
        GeometryCallback(runs.OBJECTIVES).install(trainer)


def test_another_column_and_a_trainer_that_keeps_it_are_welcome(tmp_path):
    GeometryCallback(runs.OBJECTIVES).install(_sft(tmp_path, _texts("kind")), "kind")
    trainer = _sft(tmp_path, remove_unused_columns=True)
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns = [*trainer._signature_columns, "objective"]
    GeometryCallback(runs.OBJECTIVES).install(trainer)


def test_a_training_that_was_cut_off_leaves_nothing_in_the_way_of_the_next_trainer(tmp_path):
    """A plain trainer tells its callbacks nothing of the interruption."""
    config = GeometryConfig(weighting="norm", measure_every=1, loss_reduction="token")
    first = _sft(tmp_path / "first")
    start = {name: p.detach().clone() for name, p in first.model.named_parameters()}
    left_there = GeometryCallback(runs.OBJECTIVES, config)
    left_there.install(first)
    first.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert left_there.engine is not None
    with torch.no_grad():
        for name, parameter in first.model.named_parameters():
            parameter.copy_(start[name])
    first.model.zero_grad()

    def train(name, model):
        trainer = _sft(tmp_path / name, model=model)
        GeometryCallback(runs.OBJECTIVES, config).install(trainer)
        trainer.train()
        return trainer

    again, once = train("again", first.model), train("once", None)
    found, expected = runs.adapter(again), runs.adapter(once)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert left_there.engine is None
    hooks = [
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one.model.modules()) for one in (again, once)
    ]
    assert hooks[0] == hooks[1]


class Shares(TrainerCallback):
    """The shares of every step's loss that the objectives had."""

    def __init__(self, geometry: GeometryCallback) -> None:
        self.geometry = geometry
        self.total: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.total.append(float(self.geometry.running.capture.shares.sum()))


def test_an_epochs_last_step_counts_the_micro_batches_that_it_has(tmp_path):
    """Five micro-batches in steps of three: transformers divides the second step's by two."""
    trainer = _of_samples(
        tmp_path, 15, per_device_train_batch_size=3, gradient_accumulation_steps=3, max_steps=4, learning_rate=0.0
    )
    geometry = GeometryCallback(runs.OBJECTIVES, GeometryConfig(weighting="uniform", measure_every=1))
    geometry.install(trainer)
    shares = Shares(geometry)
    trainer.add_callback(shares)
    trainer.train()
    assert shares.total == pytest.approx([1.0] * 4)
