"""The callback and the collator wrapper on trainers that know nothing of them: TRL's SFTTrainer and transformers'."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from loralign.training import GeometryCallback, GeometryConfig, last_whole_checkpoint
from loralign.training.collator import OBJECTIVE_IDS
from tests.evaluation import models
from tests.integration.children import Child, start_pair
from tests.training import runs

COMMON = {**runs.SETTINGS, "remove_unused_columns": False}


class Seen:
    """A collator that remembers its batches."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = self.collator(examples)
        self.batches.append({key: value.clone() for key, value in batch.items()})
        return batch


def conversations() -> Dataset:
    """Labelled conversations whose answers differ much in length."""
    rows = []
    for index, pair in enumerate(runs.pairs(24)):
        answer = [{"role": "assistant", "content": pair["chosen"][0]["content"] * (1 + index % 3)}]
        rows.append({"messages": pair["prompt"] + answer, "objective": pair["objective"]})
    return Dataset.from_list(rows)


def sft(output: Path, geometry: GeometryConfig | None, **options: Any) -> SFTTrainer:
    """TRL's trainer, with the callback if there is a configuration for it."""
    with warnings.catch_warnings():
        # TRL sets a field that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        args = SFTConfig(output_dir=str(output), max_length=96, **{**COMMON, **options})
    trainer = SFTTrainer(
        model=models.build("llama"),
        args=args,
        train_dataset=conversations(),
        processing_class=models.character_tokenizer(),
        peft_config=LoraConfig(**runs.LORA),
    )
    if geometry is not None:
        GeometryCallback(runs.OBJECTIVES, geometry).install(trainer)
    trainer.data_collator = Seen(trainer.data_collator)
    return trainer


def plain(output: Path, geometry: GeometryConfig | None, **options: Any) -> Trainer:
    """The transformers library's own trainer on token ids of one length, labels on more or fewer of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, models.VOCABULARY, (24, 12), generator=generator).tolist()
    dataset = Dataset.from_list(
        [
            {
                "input_ids": row,
                "labels": [-100] * (3 * (i % 4)) + row[3 * (i % 4) :],
                "objective": runs.OBJECTIVES[i % 3],
            }
            for i, row in enumerate(ids)
        ]
    )

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {key: torch.tensor([example[key] for example in examples]) for key in ("input_ids", "labels")}

    trainer = Trainer(
        model=get_peft_model(models.build("llama"), LoraConfig(**runs.LORA)),
        # Off by itself here, and deprecated under this name, which only TRL's configurations still need.
        args=TrainingArguments(
            output_dir=str(output),
            **{key: value for key, value in {**COMMON, **options}.items() if key != "gradient_checkpointing"},
        ),
        train_dataset=dataset,
        data_collator=collate,
    )
    if geometry is not None:
        GeometryCallback(runs.OBJECTIVES, geometry).install(trainer)
    trainer.data_collator = Seen(trainer.data_collator)
    return trainer


def records(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "geometry.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def own_gradients(trainer: Any, batches: list[dict[str, Tensor]]) -> Iterator[tuple[str, float]]:
    """By autograd: the norm of the gradient of every objective's own mean loss over its tokens."""
    factors = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    for objective, name in enumerate(runs.OBJECTIVES):
        total = torch.zeros(())
        tokens = 0
        for batch in batches:
            labels = batch["labels"][:, 1:]
            wanted = (batch[OBJECTIVE_IDS] == objective)[:, None] & (labels != -100)
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
            log_probs = trainer.model(**inputs).logits[:, :-1].log_softmax(-1)
            picked = log_probs.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
            total = total - (picked * wanted).sum()
            tokens += int(wanted.sum())
        gradients = torch.autograd.grad(total / tokens, factors)
        yield name, float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


MAKERS = {"sft": sft, "plain": plain}
EVERY: dict[str, Any] = {"measure_every": 1, "loss_reduction": "token"}


@pytest.fixture(scope="module", params=MAKERS)
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training without the callback, with uniform weights and with norm weights."""
    base = tmp_path_factory.mktemp(request.param)
    make = MAKERS[request.param]
    trainers = {
        "bare": make(base / "bare", None),
        "uniform": make(base / "uniform", GeometryConfig(weighting="uniform", **EVERY)),
        "norm": make(base / "norm", GeometryConfig(weighting="norm", **EVERY), save_strategy="steps", save_steps=2),
    }
    before = {name: hooks(trainer.model) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        trainer.train()
    after = {name: hooks(trainer.model) for name, trainer in trainers.items()}
    return trainers | {"base": base, "hooks": (before, after)}


def test_measurements_are_written(three: dict[str, Any]) -> None:
    measured = records(three["base"] / "norm", "measurement")
    assert [record["step"] for record in measured] == [0, 1, 2, 3]
    for record in measured:
        for name, gamma in record["attenuation"].items():
            # A sampler that knows nothing of objectives may leave one out of a batch.
            assert gamma is None if record["samples"][name] == 0 else 0 < gamma <= 1
        assert sum(record["weights"].values()) == pytest.approx(3)
    assert not (three["base"] / "bare" / "geometry.jsonl").exists()
    rows = [row for row in three["norm"].state.log_history if "loss" in row]
    assert all({"geometry/step_distortion", "weight/harmless"} <= set(row) for row in rows)


def test_uniform_weights_change_nothing(three: dict[str, Any]) -> None:
    bare, uniform = runs.adapter(three["bare"]), runs.adapter(three["uniform"])
    assert all(torch.equal(bare[name], uniform[name]) for name in bare)
    losses = [[row["loss"] for row in three[name].state.log_history if "loss" in row] for name in ("bare", "uniform")]
    assert losses[0] == losses[1]


def test_weights_change_the_adapter(three: dict[str, Any]) -> None:
    uniform, norm = runs.adapter(three["uniform"]), runs.adapter(three["norm"])
    assert any(not torch.equal(uniform[name], norm[name]) for name in uniform)
    weights = records(three["base"] / "norm", "measurement")[-1]["weights"]
    assert max(weights.values()) > 1.01


def test_the_model_is_left_as_it_was(three: dict[str, Any]) -> None:
    before, after = three["hooks"]
    assert before == after


def test_the_state_is_in_the_checkpoint(three: dict[str, Any]) -> None:
    output = three["base"] / "norm"
    last = records(output, "measurement")
    for step in (2, 4):
        state = json.loads((output / f"checkpoint-{step}" / "geometry_state.json").read_text())
        assert state["objectives"] == list(runs.OBJECTIVES)
        assert state["smoothing"]["weights"] == list(last[step - 1]["weights"].values())
    assert last_whole_checkpoint(output) is None, "only our own trainer vouches for its checkpoints"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_run_goes_on_from_its_checkpoint(kind: str, tmp_path: Path) -> None:
    geometry: dict[str, Any] = {
        "weighting": "norm",
        "refine_every": 3,
        "refine_mode": "accumulated",
        "refine_tolerance": 0.5,
    } | EVERY
    saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = MAKERS[kind](tmp_path, GeometryConfig(**geometry), **saving)
    whole.train()
    log = (tmp_path / "geometry.jsonl").read_bytes()
    again = MAKERS[kind](tmp_path, GeometryConfig(**geometry), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    first, second = runs.adapter(whole), runs.adapter(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "geometry.jsonl").read_bytes() == log
    assert [record["step"] for record in records(tmp_path, "refinement")] == [2, 5]


@pytest.mark.parametrize(("accumulation", "kind"), [(1, "sft"), (3, "sft"), (2, "plain")])
def test_statistics_are_of_the_objectives_own_mean_losses(accumulation: int, kind: str, tmp_path: Path) -> None:
    trainer = MAKERS[kind](
        tmp_path,
        GeometryConfig(weighting="uniform", **EVERY),
        max_steps=1,
        per_device_train_batch_size=6 // (2 if accumulation == 3 else 1),
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
    )
    trainer.train()
    batches = trainer.data_collator.batches[:accumulation]
    assert sum(len(batch[OBJECTIVE_IDS]) for batch in batches) >= 6
    found = records(tmp_path, "measurement")[0]["gradient_norm"]["euclidean"]
    for name, expected in own_gradients(trainer, batches):
        assert found[name] == pytest.approx(expected, rel=1e-4)


def train_sft(output: Path, **options: Any) -> None:
    """What the child processes run."""
    torch.set_num_threads(1)
    sft(output, GeometryConfig(weighting="norm", **EVERY), **options).train()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    Child(train_sft, one, log=tmp_path / "one.log").wait()
    halved = functools.partial(train_sft, per_device_train_batch_size=3, ddp_backend="gloo")
    for child in start_pair(halved, two, log=tmp_path / "two.log"):
        child.wait()
    pairs = list(zip(records(one, "measurement"), records(two, "measurement"), strict=True))
    assert len(pairs) == 4
    for first, second in pairs:
        assert first["samples"] == second["samples"]
        assert first["weights"] == pytest.approx(second["weights"], rel=1e-5)
        for space, norms in first["gradient_norm"].items():
            assert norms == pytest.approx(second["gradient_norm"][space], rel=1e-5)
        assert first["step_distortion"] == pytest.approx(second["step_distortion"], rel=1e-4)
