"""Reading a LoRA adapter's directory without a base model: its configuration and the names, shapes and values in it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from loralign.errors import AdapterError
from loralign.files import is_directory

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter's files say about it.

    Args:
        path: the adapter's directory.
        base_model: the base model as the configuration names it, or None.
        rank: LoRA rank ``r`` of the configuration; single layers may differ through ``rank_pattern``.
        alpha: LoRA alpha.
        rslora: whether the scaling is α/√r rather than α/r.
        target_modules: names (or one pattern) of the adapted modules.
        shapes: shape of every tensor in the weights file, by key.
        config: the whole configuration.
    """

    path: Path
    base_model: str | None
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    config: dict[str, Any] = field(repr=False)

    @property
    def revision(self) -> str | None:
        """Hub revision of the base as the configuration names it, or None."""
        revision = self.config.get("revision")
        return revision if isinstance(revision, str) and revision else None

    @property
    def parameters(self) -> int:
        """Number of values in the weights file."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def inspect_adapter(path: str | Path) -> AdapterInfo:
    """Check an adapter's directory on its own, without loading its base.

    Raises:
        AdapterError: the directory, its configuration or its safetensors weights are missing or damaged, the adapter
            is not LoRA, a rank, an alpha or a choice of modules in the configuration is not what PEFT writes there,
            the weights are pickled, or a value in them is not finite.
    """
    directory = Path(path).expanduser()
    if not is_directory(directory):
        raise AdapterError("no such adapter directory", place=str(path), fix="name the directory that PEFT saved")
    config = _read_config(directory)
    problem = _value_problem(config)
    if problem is not None:
        raise AdapterError(problem, place=str(directory / CONFIG_FILE), fix="save it again")
    base = config.get("base_model_name_or_path")
    targets = config.get("target_modules") or ()
    return AdapterInfo(
        path=directory,
        base_model=base if isinstance(base, str) and base else None,
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora", False)),
        target_modules=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        shapes=_read_shapes(directory),
        config=config,
    )


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise AdapterError(f"no {CONFIG_FILE}", place=str(directory), fix="name a directory that PEFT saved")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(f"not valid JSON: {error}", place=str(file), fix="save the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterError("not a JSON object", place=str(file), fix="save the adapter again")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"peft_type is {kind!r}, not 'LORA'", place=str(file), fix="use a LoRA adapter")
    return config


def _value_problem(config: dict[str, Any]) -> str | None:
    """What is wrong with the values that say which modules are adapted and how."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _is_rank(rank):
        return f"r must be a positive whole number, not {rank!r}"
    if not _is_alpha(alpha):
        return f"lora_alpha must be a number, not {alpha!r}"
    for name in ("target_modules", "exclude_modules"):
        modules = config.get(name)
        if isinstance(modules, str):
            if not _is_pattern(modules):
                return f"{name} is no regular expression: {modules!r}"
        elif modules is not None and not _is_list_of_names(modules):
            return f"{name} must be a list of names or one pattern, not {modules!r}"
    for name, is_value, wanted in (
        ("rank_pattern", _is_rank, "positive whole numbers"),
        ("alpha_pattern", _is_alpha, "numbers"),
    ):
        exceptions = config.get(name)
        if exceptions is None:
            continue
        if not isinstance(exceptions, dict) or not all(map(is_value, exceptions.values())):
            return f"{name} must give names of modules {wanted}, not be {exceptions!r}"
        for pattern in exceptions:
            if not _is_pattern(module_pattern(pattern)):
                return f"{name} has a name that is no regular expression: {pattern!r}"
    return None


def module_pattern(name: str) -> str:
    """The regular expression of whole module names that a key of ``rank_pattern`` or ``alpha_pattern`` stands for."""
    return rf"(.*\.)?({name})"


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_alpha(value: Any) -> bool:
    # Python's JSON has NaN, infinities and integers past every float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    file = directory / WEIGHTS_FILE
    if not file.is_file():
        pickled = directory / "adapter_model.bin"
        if pickled.exists():
            raise AdapterError(
                "the weights are pickled, and a pickle can run any code when it is loaded",
                place=str(pickled),
                fix=f"save the adapter again as {WEIGHTS_FILE}",
            )
        raise AdapterError(f"no {WEIGHTS_FILE}", place=str(directory), fix="save the adapter again")
    shapes = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping: it cannot be iterated
                tensor = tensors.get_tensor(key)
                if not bool(torch.isfinite(tensor).all()):
                    raise AdapterError(
                        f"{key} holds values that are not finite", place=str(file), fix="use an earlier checkpoint"
                    )
                shapes[key] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"not a whole safetensors file: {error}", place=str(file), fix="copy or save the adapter again"
        ) from error
    if not shapes:
        raise AdapterError("the weights file is empty", place=str(file), fix="save the adapter again")
    return shapes
