"""Recipes of ``loralign align``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import integration_utils
from trl import DPOConfig

from loralign.errors import ConfigError
from loralign.runs.options import COMMON_DEFAULTS, GuardedArguments, check_budget
from loralign.runs.settings import Settings, changed_fields, plain_fields
from loralign.training import GeometryConfig, GuardConfig
from loralign.training.options import option


@dataclass
class AlignArguments(GuardedArguments):
    """What is trained on what: model, data, objectives, adapter and output."""

    data: list[str] = field(
        default_factory=lambda: ["builtin"],
        metadata={"help": "Training pairs: NAME=SOURCE per objective, or sources with a label column; 'builtin'."},
    )
    validation_data: list[str] = field(
        default_factory=list, metadata={"help": "Validation pairs in the same form; for 'builtin' its own by default."}
    )
    label_column: str = option("objective", "Column with the objective's name.")
    objectives: list[str] = field(
        default_factory=list, metadata={"help": "Names and order of the objectives; all that the data has by default."}
    )
    target_weights: list[str] = field(
        default_factory=list, metadata={"help": "Target weights as NAME=NUMBER; 1 for those not named."}
    )
    max_prompt_length: int | None = option(None, "Drop pairs whose prompt is longer, in tokens.")
    length_policy: str = option("drop", "Pairs over max_length: drop them, or truncate the responses.")
    adapter: str | None = option(None, "Go on training this adapter; the reference is then its starting point.")
    validation_batch_tokens: int = option(2048, "Tokens per batch when scoring, padding included.")
    samples: int = option(6, "Prompts answered before and after, for the report.")


DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/align",
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 6,
    **COMMON_DEFAULTS,
}
"""Where a run's defaults differ from TRL's."""


@dataclass(frozen=True)
class Recipe:
    """A whole run's settings."""

    run: AlignArguments
    geometry: GeometryConfig
    guard: GuardConfig
    training: DPOConfig
    command: tuple[str, ...] = ()

    def target_weights(self) -> dict[str, float]:
        """``NAME=NUMBER`` pairs as a mapping.

        Raises:
            ConfigError: a pair that is not of this form.
        """
        weights = {}
        for text in self.run.target_weights:
            name, separator, number = text.rpartition("=")
            try:
                weights[name] = float(number)
            except ValueError:
                separator = ""
            if not separator or not name:
                raise ConfigError(f"{text!r} is not NAME=NUMBER", place="target_weights", fix="for example honest=2")
        return weights

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings as plain values: ours, and TRL's where they differ from its own."""
        return {
            "run": plain_fields(self.run),
            "geometry": plain_fields(self.geometry),
            "guard": plain_fields(self.guard),
            "training": changed_fields(self.training),
        }


ALIGN = Settings(
    command="loralign align",
    description="Align a model for several objectives through LoRA. Settings come from --config recipe.yaml and "
    "from flags, which win. Any field of TRL's DPOConfig is a flag too.",
    kinds=(AlignArguments, GeometryConfig, GuardConfig, DPOConfig),
    defaults=DEFAULTS,
)


def parse_recipe(arguments: Sequence[str], given: Mapping[str, Any] | None = None) -> Recipe:
    """Read a command line, and the YAML file it may name with ``--config``, or a recipe's content as it is given.

    Raises:
        ConfigError: as :meth:`~loralign.runs.settings.Settings.parse`; a budget or judged prompts without a guard; as
            :func:`check_training`; an ``eval_strategy`` without validation data.
    """
    run, geometry, guard, training = ALIGN.parse(arguments, given)
    check_training(training)
    if training.eval_strategy != "no" and not run.validation_data and run.data != ["builtin"]:
        raise needs_validation()
    check_budget(run, guard)
    if run.guard == "none" and run.judged_prompts:
        raise ConfigError(
            "only a guarded run has a probe to judge answers to",
            place="judged_prompts",
            fix="pass --guard auto or a subspace; with --guard_mode measure it holds nothing",
        )
    return Recipe(run, geometry, guard, training, ("loralign", "align", *arguments))


def needs_validation() -> ConfigError:
    """The fault of evaluating while training without anything to evaluate on."""
    return ConfigError(
        "there is nothing to evaluate on while training", place="eval_strategy", fix="name --validation_data"
    )


def check_training(training: TrainingArguments) -> None:
    """Refuse what a trainer would refuse only once the model is loaded, or would do to the training data alone.

    Raises:
        ConfigError: float16 on a CPU; an integration to report to that is unknown or not installed; a tokenizer's
            setting or an end to cut texts at that the scored and measured texts would not share.
    """
    if training.fp16 and training.device.type == "cpu":
        raise ConfigError("float16 needs a GPU", place="fp16", fix="leave it out, or pass --bf16 true")
    for name in training.report_to:
        _check_integration(name)
    for name in ("chat_template_path", "eos_token"):
        if (value := getattr(training, name, None)) is not None:
            raise ConfigError(
                f"{value!r} would change the training texts alone, not those that are scored and measured",
                place=name,
                fix="save it with the tokenizer in the model's directory, and leave this out",
            )
    if (mode := getattr(training, "truncation_mode", "keep_start")) != "keep_start":
        raise ConfigError(
            f"{mode!r} would cut the training texts alone, and otherwise than those that are scored and measured",
            place="truncation_mode",
            fix="leave it out, and raise max_length or shorten the texts yourself",
        )


def _check_integration(name: str) -> None:
    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}, all and none"
        raise ConfigError(f"{name!r} is nothing to report to", place="report_to", fix=hint)
    # These two are not among those that transformers finds by itself, or not always.
    apart = {"azure_ml": integration_utils.is_azureml_available, "flyte": integration_utils.is_flytekit_available}
    there = apart[name]() if name in apart else name in integration_utils.get_available_reporting_integrations()
    if not there:
        raise ConfigError(f"{name} is not installed", place="report_to", fix="install it, or leave report_to out")
