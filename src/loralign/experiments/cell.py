"""Cells of an experiment: one recipe of ``loralign align`` or ``adapt`` each, resolved, checked and fingerprinted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

import yaml

from loralign import __version__
from loralign.errors import ConfigError
from loralign.experiments.contents import identity_digest, known_by_content
from loralign.experiments.measurement import Measurement
from loralign.runs import parse_adapt_recipe, parse_recipe
from loralign.runs.adapt_recipe import ADAPT, AdaptRecipe
from loralign.runs.recipe import ALIGN, Recipe
from loralign.runs.settings import plain
from loralign.training import GuardConfig

Command = Literal["align", "adapt"]
CellSettings = dict[str, Any]
"""Every field of a recipe and its value."""

_PLACES = (
    "model",
    "adapter",
    "guard",
    "data",
    "validation_data",
    "alignment_data",
    "probe_data",
    "preservation_prompts",
    "pretraining_data",
    "models",
)
# Where a run goes and whether it goes on says nothing about what it finds.
_OWN = ("output_dir", "resume", "overwrite")
_SEED = "seed"
# What a guard is told decides nothing where there is none, but for how the drift is measured.
_OF_A_GUARD = {one.name for one in fields(GuardConfig) if not one.name.startswith("probe")} | {
    "fisher_samples",
    "fisher_tokens",
}


@dataclass(frozen=True)
class Cell:
    """One run: the settings of a whole recipe, which decide its outcome.

    Attributes:
        command: ``align`` or ``adapt``.
        settings: every field of the recipe but those that say where the run goes, as plain values; ``seed`` among them.
        measures: what is measured of the finished adapter beside the run's own scores; no part of the fingerprint.
        fingerprint: hexadecimal, of all that trains the adapter: command, settings, the contents of the files that they
            name, processes, and the version.
    """

    command: Command
    settings: Mapping[str, Any]
    measures: tuple[Measurement, ...] = ()
    fingerprint: str = ""

    @property
    def seed(self) -> int:
        """Of everything random in the run."""
        return int(self.settings[_SEED])

    @property
    def key(self) -> str:
        """Name of the cell's directory."""
        return f"{self.command}-{self.fingerprint[:16]}"


def base_settings(command: Command, arguments: Sequence[str]) -> CellSettings:
    """The settings that a command line of ``loralign align`` or ``adapt`` stands for, as one flat recipe.

    Args:
        command: ``align`` or ``adapt``.
        arguments: as after the command's name: flags, and a recipe with ``--config``.

    Raises:
        ConfigError: as the command itself would.
    """
    return flat_settings(_parse(command, arguments))


def flat_settings(recipe: Recipe | AdaptRecipe) -> CellSettings:
    """A recipe as one mapping: our own fields, the seed, and TRL's that differ from what the command has by default.

    What says where a run goes is left out.
    """
    own = {name: value for part in recipe.settings().values() for name, value in part.items()}
    default = _default_training("align" if isinstance(recipe, Recipe) else "adapt")
    # By comparison with the command's own defaults: with TRL's, a value that is TRL's default would be lost where ours
    # is another. TRL fills in fields of its own alike on both sides.
    for one in fields(recipe.training):
        own.pop(one.name, None)
        value = plain(getattr(recipe.training, one.name, None))
        if one.init and (one.name == _SEED or value != plain(getattr(default, one.name, None))):
            own[one.name] = value
    return {name: value for name, value in own.items() if name not in _OWN}


@cache
def _default_training(command: Command) -> Any:
    return (ALIGN if command == "align" else ADAPT).parse([])[-1]


def make_cell(
    command: Command,
    base: Mapping[str, Any],
    overrides: Mapping[str, Any],
    seed: int,
    measures: Sequence[Measurement] = (),
    accelerate: Sequence[str] | None = None,
) -> Cell:
    """A cell from a base recipe and what is different in it.

    Equal settings give equal fingerprints however they are written: the recipe is parsed as the command would parse it,
    defaults filled in, and what it names on disk is known by its content, wherever it lies.

    Args:
        command: ``align`` or ``adapt``.
        base: :func:`base_settings`.
        overrides: recipe fields and their values here; ``None`` takes a field back to its default.
        seed: of the run.
        measures: what is measured beside the run's own scores.
        accelerate: words after ``accelerate launch``, since the number of processes is part of the batch; ``None``
            where the cell runs without it.

    Raises:
        ConfigError: a field that the command does not have, or a value that it refuses.
    """
    kept = {name: value for name, value in base.items() if name not in overrides}
    # Overrides go in as flags, which are read as their fields are typed: a space's values are text.
    resolved = flat_settings(_parse(command, _flags(overrides), {**kept, _SEED: seed}))
    identity = {
        "command": command,
        "settings": known_settings(_without_idle(resolved)),
        "accelerate": None if accelerate is None else list(accelerate),
        "version": __version__,
    }
    return Cell(command, resolved, tuple(measures), identity_digest(identity))


def known_settings(settings: Mapping[str, Any]) -> CellSettings:
    """Settings of a recipe or of an experiment, with what they name on disk known by its content."""
    return {name: known_by_content(value) if name in _PLACES else value for name, value in settings.items()}


def recipe_of(cell: Cell, output_dir: str) -> Recipe | AdaptRecipe:
    """The recipe that the cell's command runs, going on where an interrupted run of it stopped.

    Raises:
        ConfigError: as the command itself would.
    """
    return _parse(cell.command, [], {**cell.settings, "output_dir": output_dir, "resume": True})


def recipe_text(cell: Cell, output_dir: str) -> str:
    """The same as a YAML file for ``--config``."""
    return yaml.safe_dump({**cell.settings, "output_dir": output_dir, "resume": True}, sort_keys=True)


def _parse(command: Command, arguments: Sequence[str], given: Mapping[str, Any] | None = None) -> Recipe | AdaptRecipe:
    if command == "align":
        return parse_recipe(arguments, given)
    if command == "adapt":
        return parse_adapt_recipe(arguments, given)
    raise ConfigError(f"{command!r} is no command that trains", place="command", fix="use align or adapt")


def _flags(overrides: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in overrides.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(json.dumps(one) if isinstance(one, bool | Mapping) else str(one) for one in values)]
    return words


def _without_idle(settings: Mapping[str, Any]) -> CellSettings:
    idle = _OF_A_GUARD if settings.get("guard") == "none" else set()
    return {name: value for name, value in settings.items() if name not in idle}
