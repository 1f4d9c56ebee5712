"""Recipes of ``loralign align``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import DPOConfig

from loralign.errors import ConfigError
from loralign.runs.options import RunArguments, option
from loralign.runs.settings import Settings, changed_fields, plain
from loralign.training import GeometryConfig, GuardConfig


@dataclass
class AlignArguments(RunArguments):
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
    guard: str = option(
        "none", "Hold the base's alignment meanwhile: a directory of loralign fisher, 'auto' to estimate one, or none."
    )
    alignment_data: list[str] = field(
        default_factory=lambda: ["builtin"],
        metadata={"help": "What must survive under a guard: prompts with responses; 'builtin'."},
    )


DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/align",
    "learning_rate": 1e-4,
    "max_steps": 60,
    "per_device_train_batch_size": 6,
    "max_length": 256,
    "pad_to_multiple_of": 32,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "weight_decay": 0.0,
    "logging_steps": 5,
    "save_strategy": "steps",
    "save_steps": 20,
    "save_total_limit": 2,
    "report_to": "none",
    "gradient_checkpointing": False,
    "bf16": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "use_cpu": not torch.cuda.is_available(),
    "seed": 0,
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
        parts = {"run": self.run, "geometry": self.geometry, "guard": self.guard}
        ours = {part: {name: plain(value) for name, value in vars(one).items()} for part, one in parts.items()}
        return {**ours, "training": changed_fields(self.training)}


ALIGN = Settings(
    command="loralign align",
    description="Align a model for several objectives through LoRA. Settings come from --config recipe.yaml and "
    "from flags, which win. Any field of TRL's DPOConfig is a flag too.",
    kinds=(AlignArguments, GeometryConfig, GuardConfig, DPOConfig),
    defaults=DEFAULTS,
)


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """Read a command line, and the YAML file it may name with ``--config``.

    Raises:
        ConfigError: as :meth:`~loralign.runs.settings.Settings.parse`.
    """
    run, geometry, guard, training = ALIGN.parse(arguments)
    return Recipe(run, geometry, guard, training, ("loralign", "align", *arguments))
