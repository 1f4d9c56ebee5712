"""Command lines of experiments: their own settings beside those of the recipe that their cells share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from loralign.errors import ConfigError
from loralign.experiments.cell import CellSettings, Command, flat_settings
from loralign.experiments.experiment import ExperimentOptions, Tell
from loralign.experiments.measuring import Measures
from loralign.experiments.running import Launcher
from loralign.runs.adapt_recipe import ADAPT, AdaptRecipe
from loralign.runs.recipe import ALIGN, Recipe
from loralign.runs.settings import Settings
from loralign.training.options import option

T = TypeVar("T")


DECIDED = {
    "seed": "give --seeds, with each of which every arm is run",
    "output_dir": "give --output",
    "resume": "repeat the command, and it goes on by itself",
    "overwrite": "choose another --output",
}
"""Fields of recipes that an experiment sets, and what to give instead."""


@dataclass
class ExperimentArguments:
    """Where an experiment goes, how often and by whom its cells are run, and what is measured of them."""

    output: str = option("runs/experiment", "Directory of cells and results; repeated, the command goes on in it.")
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Every arm is run with each."})
    storage: str | None = option(None, "URL of Optuna's database, for workers on many machines; SQLite by default.")
    workers: int = option(1, "Processes that share the cells on this machine.")
    accelerate: str | None = option(
        None, "Run every cell under accelerate launch with these words; '' for its default."
    )
    retry: bool = option(False, "Run cells again that failed before.")
    driftcheck: str | None = option(None, "A built set of prompts that every adapter is asked; else the run's probe.")
    driftcheck_prompts: int = option(200, "Prompts of its test part that are asked.")
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "Tasks of lm-evaluation-harness, NAME or NAME=PATH."}
    )
    task_limit: int | None = option(None, "Most documents of each task.")

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"{self.workers} workers do no work", place="workers", fix="use at least 1")

    def options(self, tell: Tell) -> ExperimentOptions:
        """As the experiments take them."""
        accelerate = None if self.accelerate is None else tuple(shlex.split(self.accelerate))
        return ExperimentOptions(
            output=Path(self.output),
            seeds=tuple(self.seeds),
            storage=self.storage,
            launcher=Launcher(accelerate, self.retry),
            measures=Measures(self.driftcheck, self.driftcheck_prompts, tuple(self.tasks), self.task_limit),
            tell=tell,
        )


@dataclass(frozen=True)
class ExperimentRecipe(Generic[T]):
    """What a command line asks for.

    Attributes:
        own: the experiment's own settings.
        experiment: those that all experiments have.
        base: of every cell.
        words: the command line.
    """

    own: T
    experiment: ExperimentArguments
    base: CellSettings
    words: tuple[str, ...]


@dataclass
class Nothing:
    """An experiment without settings of its own."""


def parse_experiment(name: str, own: type[T], command: Command, arguments: Sequence[str]) -> ExperimentRecipe[T]:
    """Read a command line, and the YAML file it may name with ``--config``.

    A first word that is no flag is the model.

    Args:
        name: of the experiment, as typed after ``loralign``.
        own: dataclass of its own settings.
        command: that its cells run.
        arguments: the words after the name.

    Raises:
        ConfigError: as :meth:`~loralign.runs.settings.Settings.parse`; no task data, or no pairs to validate on.
    """
    words = list(arguments)
    if words and not words[0].startswith("-"):
        words[:1] = ["--model", words[0]]
    for flag, fix in DECIDED.items():
        if any(word == f"--{flag}" or word.startswith(f"--{flag}=") for word in words):
            raise ConfigError(f"--{flag} is decided by the experiment", place="command line", fix=fix)
    objects = experiment_settings(name, own, command).parse(words)
    recipe = Recipe(*objects[2:]) if command == "align" else AdaptRecipe(*objects[2:])
    if command == "adapt" and not recipe.run.data:
        raise ConfigError("there is no task to adapt to", place="--data", fix="name a file of conversations")
    if command == "align" and not recipe.run.validation_data and recipe.run.data != ["builtin"]:
        # A run may do without; an experiment would train all its arms and then have nothing to compare them by.
        raise ConfigError(
            "there are no pairs to score the arms on", place="--validation_data", fix="name pairs that are held back"
        )
    return ExperimentRecipe(objects[0], objects[1], flat_settings(recipe), ("loralign", *name.split(), *arguments))


def experiment_settings(name: str, own: type[Any], command: Command) -> Settings:
    """All flags of an experiment and keys of its recipes."""
    cell = ALIGN if command == "align" else ADAPT
    return Settings(
        command=f"loralign {name}",
        description=f"An experiment over runs of {cell.command}. Settings come from --config recipe.yaml and from "
        "flags, which win.",
        kinds=(own, ExperimentArguments, *cell.kinds),
        defaults=cell.defaults,
    )
