"""``loralign diagnose``: what LoRA's geometry does to each objective, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from loralign.capture import GradientStatistics
from loralign.data import limit_length, load_preferences
from loralign.errors import ConfigError
from loralign.geometry import directional_distortion, make_weighting, tradeoff_distortion
from loralign.models import load_model
from loralign.report import diagnosis_sentences, shared_sentences
from loralign.runs.opening import open_base
from loralign.runs.prepare import make_trainer
from loralign.runs.recipe import Recipe, parse_recipe
from loralign.training import MultiObjectiveDPOTrainer
from loralign.training.records import measurement_record, without_shared_record


@dataclass(frozen=True)
class Diagnosis:
    """One measurement and what it means.

    Attributes:
        statistics: the Gramians.
        record: attenuation per objective and layer, cosines and distortions, as plain values.
        sentences: the same in words.
        suggested: weights that Norm and Geo would give.
        without_shared: what remains without the input directions that all objectives share, as plain values, if it was
            asked for.
    """

    statistics: GradientStatistics
    record: dict[str, Any]
    sentences: list[str]
    suggested: dict[str, dict[str, float]]
    without_shared: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A mapping of plain values."""
        found = {"version": 1, "measurement": self.record, "sentences": self.sentences, "weights": self.suggested}
        return found if self.without_shared is None else found | {"without_shared": self.without_shared}


def diagnose(
    subject: str | None,
    sources: Sequence[str],
    *,
    pairs: int = 24,
    rank: int = 16,
    target_weights: Sequence[str] = (),
    settings: Sequence[str] = (),
    without_shared: int = 0,
) -> Diagnosis:
    """Measure the gradients of a DPO step at an adapter, or at a fresh one on a model.

    Args:
        subject: an adapter's directory, or a model to put a fresh adapter on.
        sources: labelled pairs.
        pairs: pairs measured over all objectives, spread evenly.
        rank: of a fresh adapter.
        target_weights: ``NAME=NUMBER``.
        settings: further flags of ``loralign align``.
        without_shared: input directions per layer that all objectives share, to be taken out for a second reading; 0
            leaves it away, and with it a second pass over the pairs.

    Raises:
        LoralignError: any fault of model, adapter or data.
    """
    with TemporaryDirectory() as scratch:
        trainer = measuring_trainer(subject, sources, pairs, rank, target_weights, settings, Path(scratch))
        batches = max(1, pairs // trainer.args.per_device_train_batch_size)
        remainder = trainer.measure_without_shared(without_shared, batches) if without_shared else None
        statistics = trainer.measure_geometry(batches) if remainder is None else remainder.whole
        target = trainer.target
    weights = {name: make_weighting(name)(statistics, target) for name in ("norm", "geo")}
    layers = len(statistics.layer_names)
    in_force = torch.ones(layers, len(target), dtype=torch.float64)
    record = measurement_record(0, statistics, None, target, weights["geo"], in_force, None)
    tradeoff = tradeoff_distortion(statistics, target)
    sentences = diagnosis_sentences(
        record["attenuation"],
        layer_attenuation=record["layer_attenuation"],
        cosine=record["cosine"],
        objectives=record["objectives"],
        directional_distortion=directional_distortion(statistics, target),
        tradeoff={"total_variation": tradeoff.total_variation, "spread": tradeoff.spread},
    )
    shared = None if remainder is None else without_shared_record(remainder)
    if shared is not None:
        sentences += shared_sentences(record["attenuation"], shared, objectives=record["objectives"])
    named = {name: dict(zip(statistics.objectives, values.tolist(), strict=True)) for name, values in weights.items()}
    return Diagnosis(statistics, record, sentences, named, shared)


def measuring_trainer(
    subject: str | None,
    sources: Sequence[str],
    pairs: int,
    rank: int,
    target_weights: Sequence[str],
    settings: Sequence[str],
    scratch: Path,
) -> MultiObjectiveDPOTrainer:
    """A trainer that measures but does not train.

    Raises:
        ConfigError: fewer pairs than objectives.
    """
    recipe = parse_recipe(
        [*settings, "--output_dir", str(scratch), "--lora_r", str(rank), "--lora_alpha", str(2 * rank)]
    )
    recipe.run.data = list(sources)
    recipe.run.target_weights = list(target_weights)
    adapter = subject is not None and (Path(subject) / "adapter_config.json").exists()
    preferences = load_preferences(recipe.run.data, label_column=recipe.run.label_column)
    if pairs < len(preferences.objectives):
        raise ConfigError(f"{pairs} pairs cannot hold {len(preferences.objectives)} objectives", place="--pairs")
    if adapter:
        recipe.run.adapter = subject
        loaded = open_base(str(subject), recipe.run.model, recipe.run.dtype, recipe.run.revision)
    else:
        recipe.run.model = subject
        loaded = load_model(
            subject, dtype=recipe.run.dtype, load_in_4bit=recipe.run.load_in_4bit, revision=recipe.run.revision
        )
    if recipe.training.max_length is not None:
        preferences, _ = limit_length(preferences, loaded.tokenizer, max_length=recipe.training.max_length)
    return make_measuring_trainer(recipe, loaded, preferences)


def make_measuring_trainer(recipe: Recipe, loaded: Any, preferences: Any) -> MultiObjectiveDPOTrainer:
    """The recipe's trainer with the adapter measured against its base.

    An adapter that is trained on becomes its own reference, which makes every margin zero; for a diagnosis the
    reference is the base, against which the adapter was trained.
    """
    trainer = make_trainer(recipe, loaded, preferences)
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")
    return trainer
