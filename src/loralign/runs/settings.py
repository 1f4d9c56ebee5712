"""Settings of a command: YAML overridden by flags, in TRL's manner, with every fault in one line."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from trl import TrlParser

from loralign.errors import ConfigError


class _SettingsParser(TrlParser):
    """TRL's parser with errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, fix=f"see {self.prog} --help")


@dataclass(frozen=True)
class Settings:
    """The configurations of one command; every field of each of them is a flag and a key of its recipes.

    Args:
        command: as typed, such as ``loralign align``.
        description: for ``--help --all``.
        kinds: the dataclasses.
        defaults: where the command's defaults differ from those of the dataclasses.
    """

    command: str
    description: str
    kinds: tuple[type, ...]
    defaults: Mapping[str, Any]

    def parser(self) -> TrlParser:
        """The parser of all flags."""
        parser = _SettingsParser(
            self.kinds, prog=self.command, description=self.description, conflict_handler="resolve"
        )
        parser.set_defaults_with_config(**self.defaults)
        return parser

    def parse(self, arguments: Sequence[str], given: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """One object of every kind from a command line and the YAML file that it may name with ``--config``.

        Args:
            arguments: the words after the command's name.
            given: a recipe's content in place of a file's.

        Raises:
            ConfigError: an unknown key or flag (with the nearest known one), a value of the wrong kind, a file that is
                no mapping.
        """
        words = list(arguments)
        parser = self.parser()
        known = {one.name for kind in self.kinds for one in fields(kind)}
        config = _take_config(words)
        content = dict(given or {}) if config is None else _read_yaml(config)
        if content:
            for key in content:
                if key not in known:
                    place = "recipe" if config is None else str(config)
                    raise ConfigError(f"{key!r} is no setting", place=place, fix=self._nearest(key, known, ""))
            kinds = {one.name: (one, _types(kind)[one.name]) for kind in self.kinds for one in fields(kind)}
            content = {key: _of_kind(value, *kinds[key], config) for key, value in content.items()}
            parser.set_defaults_with_config(**content)
        with _quiet():
            try:
                *objects, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
            except (ValueError, TypeError, NotImplementedError) as error:
                raise ConfigError(str(error), place=str(config or "command line")) from error
        unknown = [word for word in rest if word.startswith("-")] or rest
        if unknown:
            flag = unknown[0].split("=")[0]
            raise ConfigError(
                f"{flag} is no flag", place="command line", fix=self._nearest(flag.lstrip("-"), known, "--")
            )
        return tuple(objects)

    def _nearest(self, word: str, known: set[str], prefix: str) -> str:
        near = difflib.get_close_matches(word.replace("-", "_"), sorted(known), n=1, cutoff=0.5)
        return f"did you mean {prefix}{near[0]}?" if near else f"see {self.command} --help"


def plain_fields(settings: Any) -> dict[str, Any]:
    """All fields of a configuration as plain values."""
    return {name: plain(value) for name, value in vars(settings).items()}


def changed_fields(training: Any) -> dict[str, Any]:
    """The fields of a training configuration that differ from its class's own defaults, as plain values."""
    return {
        one.name: plain(getattr(training, one.name))
        for one in fields(training)
        if one.init and plain(getattr(training, one.name, None)) != plain(_default(one))
    }


def _take_config(words: list[str]) -> Path | None:
    for index, word in enumerate(words):
        if word == "--config":
            if index + 1 == len(words):
                raise ConfigError("--config needs a file", place="command line")
            path = Path(words[index + 1])
            del words[index : index + 2]
            return path
        if word.startswith("--config="):
            del words[index]
            return Path(word.partition("=")[2])
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read as YAML: {error}", place=str(path)) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"holds {type(content).__name__}, not a mapping of settings", place=str(path))
    return {str(key): value for key, value in content.items()}


@cache
def _types(kind: type) -> dict[str, str]:
    """Types of a configuration's fields as they are written; the parser takes ``None`` out of those of the fields."""
    return {name: str(hint) for name, hint in get_type_hints(kind).items()}


def _of_kind(value: Any, one: Field[Any], takes: str, config: Path | None) -> Any:
    """A YAML value as its field takes it: a single word is a list of one, a number with a fraction is no count.

    Raises:
        ConfigError: a fraction for a count; nothing, or several values, for a field that does not take that.
    """
    default, place = _default(one), f"{config or 'recipe'}: {one.name}"
    # Values that are no text are taken as they are: the parser converts and checks those of the command line alone.
    if value is None and default is not None and "None" not in takes and "Optional" not in takes:
        raise ConfigError("has no value", place=place, fix="give one, or leave it out")
    if isinstance(value, list) and not any(word in takes.lower() for word in ("list", "tuple", "sequence", "any")):
        raise ConfigError(f"{value} are several values where one belongs", place=place, fix="give one")
    if isinstance(value, Mapping) and isinstance(default, list):
        # As labels are written on the command line.
        value = [f"{label}={one}" for label, one in value.items()]
    if isinstance(default, list) and not isinstance(value, list) and value is not None:
        value = [value]
    if any(not isinstance(one, str) for one in _texts(value, takes)):
        raise ConfigError(f"{value} is no text", place=place, fix="write it in quotes")
    if isinstance(default, list):
        return value
    # Steps of transformers' own may be a share of the run, whatever number stands there by default.
    counts = isinstance(default, int) and not isinstance(default, bool) and "float" not in takes
    if counts and isinstance(value, float) and not value.is_integer():
        raise ConfigError(f"{value} is no whole number", place=place, fix="give a whole number")
    return int(value) if counts and isinstance(value, float) else value


def _texts(value: Any, takes: str) -> list[Any]:
    """The parts of a value that must be text, by the type of its field."""
    takes = takes.removeprefix("<class '").removesuffix("'>").replace(" | None", "").replace("typing.", "")
    if takes in ("str", "Optional[str]"):
        return [] if value is None else [value]
    return value if takes in ("list[str]", "List[str]") and isinstance(value, list) else []


def _default(one: Field[Any]) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def plain(value: Any) -> Any:
    """A value as JSON and YAML know it."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return getattr(value, "value", value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(one) for one in value]
    return str(getattr(value, "value", value))


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """TRL sets a field under the name that transformers has just renamed, and warns of its own doing."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        return entered
