"""Recipes: YAML overridden by flags, in TRL's manner."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from trl import DPOConfig, TrlParser

from loralign.errors import ConfigError
from loralign.models.dtype import DtypeName
from loralign.training import GeometryConfig


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class AlignArguments:
    """What is trained on what: model, data, objectives, adapter and output."""

    model: str | None = _option(None, "Local directory, hub name or installed model; smollm2-135m-instruct by default.")
    revision: str | None = _option(None, "Hub revision of the model.")
    dtype: DtypeName = field(
        default="auto",
        metadata={"help": "Base weights: auto (bfloat16 where it is fast), float32, bfloat16 or float16."},
    )
    load_in_4bit: bool = _option(False, "Quantise the base to 4 bits; needs loralign[quantization].")
    data: list[str] = field(
        default_factory=lambda: ["builtin"],
        metadata={"help": "Training pairs: NAME=SOURCE per objective, or sources with a label column; 'builtin'."},
    )
    validation_data: list[str] = field(
        default_factory=list, metadata={"help": "Validation pairs in the same form; for 'builtin' its own by default."}
    )
    label_column: str = _option("objective", "Column with the objective's name.")
    objectives: list[str] = field(
        default_factory=list, metadata={"help": "Names and order of the objectives; all that the data has by default."}
    )
    target_weights: list[str] = field(
        default_factory=list, metadata={"help": "Target weights as NAME=NUMBER; 1 for those not named."}
    )
    max_prompt_length: int | None = _option(None, "Drop pairs whose prompt is longer, in tokens.")
    length_policy: str = _option("drop", "Pairs over max_length: drop them, or truncate the responses.")
    lora_r: int = _option(16, "LoRA rank.")
    lora_alpha: int = _option(32, "LoRA alpha.")
    lora_dropout: float = _option(0.0, "LoRA dropout; TRL switches it off unless disable_dropout is false.")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Module names, or all-linear."}
    )
    use_rslora: bool = _option(False, "Scale by alpha / sqrt(r).")
    adapter: str | None = _option(None, "Go on training this adapter; the reference is then its starting point.")
    validation_batch_tokens: int = _option(2048, "Tokens per batch when scoring, padding included.")
    samples: int = _option(6, "Prompts answered before and after, for the report.")
    resume: bool = _option(False, "Go on from the last whole checkpoint in output_dir.")
    overwrite: bool = _option(False, "Replace what an earlier run left in output_dir.")


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
        """The settings as plain values: the run's, the geometry's, and TRL's where they differ from its own."""
        changed = {
            one.name: getattr(self.training, one.name)
            for one in fields(DPOConfig)
            if one.init and _plain(getattr(self.training, one.name, None)) != _plain(_default(one))
        }
        parts = {"run": vars(self.run), "geometry": vars(self.geometry), "training": changed}
        return {part: {name: _plain(value) for name, value in values.items()} for part, values in parts.items()}


class _RecipeParser(TrlParser):
    """TRL's parser with errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, fix="see loralign align --help")


def make_parser() -> TrlParser:
    """The parser of ``loralign align``: every field of the three configurations is a flag."""
    parser = _RecipeParser(
        (AlignArguments, GeometryConfig, DPOConfig),
        prog="loralign align",
        description="Align a model for several objectives through LoRA. Settings come from --config recipe.yaml and "
        "from flags, which win. Any field of TRL's DPOConfig is a flag too.",
        conflict_handler="resolve",
    )
    parser.set_defaults_with_config(**DEFAULTS)
    return parser


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """Read a command line, and the YAML file it may name with ``--config``.

    Raises:
        ConfigError: an unknown key or flag (with the nearest known one), a value of the wrong kind, a file that is no
            mapping.
    """
    words = list(arguments)
    parser = make_parser()
    known = {name for kind in (AlignArguments, GeometryConfig, DPOConfig) for name in kind.__dataclass_fields__}
    config = _take_config(words)
    if config is not None:
        _check_keys(config, known)
        parser.set_defaults_with_config(**_read_yaml(config))
    with _quiet():
        try:
            run, geometry, training, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(str(error), place=str(config or "command line")) from error
    unknown = [word for word in rest if word.startswith("-")] or rest
    if unknown:
        flag = unknown[0].split("=")[0]
        raise ConfigError(f"{flag} is no flag", place="command line", fix=_nearest(flag.lstrip("-"), known, "--"))
    return Recipe(run, geometry, training, ("loralign", "align", *arguments))


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


def _check_keys(path: Path, known: set[str]) -> None:
    for key in _read_yaml(path):
        if key not in known:
            raise ConfigError(f"{key!r} is no setting", place=str(path), fix=_nearest(key, known, ""))


def _nearest(word: str, known: set[str], prefix: str) -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), sorted(known), n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else "see loralign align --help"


def _default(one: Field[Any]) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return getattr(value, "value", value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(one) for one in value]
    return str(getattr(value, "value", value))


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """TRL sets a field under the name that transformers has just renamed, and warns of its own doing."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        return entered
