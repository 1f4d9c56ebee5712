"""Cells of an experiment: one recipe of ``loralign align`` or ``adapt`` each, resolved, checked and fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from loralign import __version__
from loralign.errors import ConfigError
from loralign.experiments.contents import contents_digest
from loralign.runs import parse_adapt_recipe, parse_recipe
from loralign.runs.adapt_recipe import ADAPT, AdaptRecipe
from loralign.runs.recipe import ALIGN, Recipe
from loralign.runs.settings import plain

Command = Literal["align", "adapt"]
CellSettings = dict[str, Any]
"""Every field of a recipe and its value."""

_PLACES = ("model", "adapter", "guard", "data", "validation_data", "alignment_data", "probe_data")
# Where a run goes and whether it goes on says nothing about what it finds.
_OWN = ("output_dir", "resume", "overwrite")
_SEED = "seed"


@dataclass(frozen=True)
class Cell:
    """One run: the settings of a whole recipe, which decide its outcome.

    Attributes:
        command: ``align`` or ``adapt``.
        settings: every field of the recipe but those that say where the run goes, as plain values; ``seed`` among them.
        measures: what is measured of the finished adapter beside the run's own scores, as plain values.
        fingerprint: hexadecimal, of all of these, of the contents of the files that they name, and of the version.
    """

    command: Command
    settings: Mapping[str, Any]
    measures: Mapping[str, Any] = field(default_factory=dict)
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
    """A recipe as one mapping: our own fields, and TRL's that differ from what the command has by default.

    What says where a run goes is left out.
    """
    settings = recipe.settings()
    default = _default_training("align" if isinstance(recipe, Recipe) else "adapt")
    # TRL fills in fields of its own, such as a whole accelerator configuration, which are no flags.
    changed = {
        name: value
        for name, value in settings.pop("training").items()
        if plain(getattr(default, name)) != value or name in (_SEED, "max_length", "max_steps", "learning_rate")
    }
    own = {name: value for part in settings.values() for name, value in part.items()}
    return {name: value for name, value in {**own, **changed}.items() if name not in _OWN}


@cache
def _default_training(command: Command) -> Any:
    return (ALIGN if command == "align" else ADAPT).parse([])[-1]


def make_cell(
    command: Command,
    base: Mapping[str, Any],
    overrides: Mapping[str, Any],
    seed: int,
    measures: Mapping[str, Any] | None = None,
) -> Cell:
    """A cell from a base recipe and what is different in it.

    Equal settings give equal fingerprints however they are written: the recipe is parsed as the command would parse it,
    defaults filled in, and what it names on disk is known by its content.

    Args:
        command: ``align`` or ``adapt``.
        base: :func:`base_settings`.
        overrides: recipe fields and their values here; ``None`` takes a field back to its default.
        seed: of the run.
        measures: what else is measured.

    Raises:
        ConfigError: a field that the command does not have, or a value that it refuses.
    """
    settings = {**base, **overrides, _SEED: seed}
    resolved = flat_settings(_parse(command, _words(settings)))
    measures = dict(measures or {})
    named = [resolved.get(name) for name in _PLACES] + list(measures.values())
    identity = {
        "command": command,
        "settings": resolved,
        "measures": measures,
        "contents": {place: digest for place in _texts(named) if (digest := contents_digest(place)) is not None},
        "version": __version__,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return Cell(command, resolved, measures, hashlib.sha256(text.encode()).hexdigest())


def recipe_of(cell: Cell, output_dir: str) -> Recipe | AdaptRecipe:
    """The recipe that the cell's command runs, going on where an interrupted run of it stopped.

    Raises:
        ConfigError: as the command itself would.
    """
    return _parse(cell.command, _words({**cell.settings, "output_dir": output_dir, "resume": True}))


def recipe_words(cell: Cell, output_dir: str) -> list[str]:
    """The same as a command line, after ``loralign``."""
    return [cell.command, *_words({**cell.settings, "output_dir": output_dir, "resume": True})]


def _parse(command: Command, arguments: Sequence[str]) -> Recipe | AdaptRecipe:
    if command == "align":
        return parse_recipe(arguments)
    if command == "adapt":
        return parse_adapt_recipe(arguments)
    raise ConfigError(f"{command!r} is no command that trains", place="command", fix="use align or adapt")


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags. A field that is ``None`` keeps its default, and so does an empty list."""
    words: list[str] = []
    for name, value in settings.items():
        if value is None or value == [] or value == {}:
            continue
        if isinstance(value, Mapping):
            words += [f"--{name}", json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(_text, value)]
        else:
            words += [f"--{name}", _text(value)]
    return words


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def _texts(values: Sequence[Any]) -> list[str]:
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _texts(value)
        elif isinstance(value, Mapping):
            found += _texts(list(value.values()))
    return sorted(set(found))
