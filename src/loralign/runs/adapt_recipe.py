"""Recipes of ``loralign adapt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from loralign.errors import ConfigError
from loralign.runs.options import COMMON_DEFAULTS, GuardedArguments, check_budget, check_least
from loralign.runs.recipe import check_training
from loralign.runs.settings import Settings, changed_fields, plain_fields
from loralign.training import GuardConfig
from loralign.training.options import option


@dataclass
class AdaptArguments(GuardedArguments):
    """What is adapted to what: model or aligned adapter, task data, subspace and output."""

    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The task: files, directories or hub names of conversations, prompts with completions, text."
        },
    )
    validation_data: list[str] = field(
        default_factory=list, metadata={"help": "The task's validation samples; by default some of --data, held back."}
    )
    validation_samples: int = option(64, "Validation samples to score, and to hold back where none are named.")
    split_seed: int = option(0, "Seed of the choice of those held back; the training's own seed does not change it.")
    guard: str = option("auto", "The subspace: a directory of loralign fisher; auto estimates it; none is plain LoRA.")
    judged_prompts: int = option(40, "Probe prompts answered and judged before and after; 0 is off.")
    samples: int = option(6, "Prompts answered before and after, for the report.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, validation_samples=1, split_seed=0, samples=0)


ADAPT_DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/adapt",
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 8,
    **COMMON_DEFAULTS,
}
"""Where an adaptation's defaults differ from TRL's."""


@dataclass(frozen=True)
class AdaptRecipe:
    """A whole adaptation's settings."""

    run: AdaptArguments
    guard: GuardConfig
    training: SFTConfig
    command: tuple[str, ...] = ()

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings as plain values: ours, and TRL's where they differ from its own."""
        return {
            "run": plain_fields(self.run),
            "guard": plain_fields(self.guard),
            "training": changed_fields(self.training),
        }


ADAPT = Settings(
    command="loralign adapt",
    description="Fine-tune a model on a task with LoRA while its alignment is held. Settings come from --config "
    "recipe.yaml and from flags, which win. Any field of TRL's SFTConfig is a flag too.",
    kinds=(AdaptArguments, GuardConfig, SFTConfig),
    defaults=ADAPT_DEFAULTS,
)


def parse_adapt_recipe(arguments: Sequence[str], given: Mapping[str, Any] | None = None) -> AdaptRecipe:
    """Read a command line, and the YAML file it may name with ``--config``, or a recipe's content as it is given.

    A first word that is no flag is the model, so ``loralign adapt MODEL --data task.jsonl`` works.

    Raises:
        ConfigError: as :meth:`~loralign.runs.settings.Settings.parse`; no task data; a budget without a guard; as
            :func:`~loralign.runs.recipe.check_training`.
    """
    words = list(arguments)
    if words and not words[0].startswith("-"):
        words[:1] = ["--model", words[0]]
    run, guard, training = ADAPT.parse(words, given)
    if not run.data:
        raise ConfigError("there is no task to adapt to", place="--data", fix="name a file of conversations")
    check_training(training)
    check_budget(run, guard)
    return AdaptRecipe(run, guard, training, ("loralign", "adapt", *arguments))
