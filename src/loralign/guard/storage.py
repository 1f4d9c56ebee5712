"""Subspaces as files: a safetensors file and a JSON file in one directory, each telling when it was damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loralign.errors import OutputError, StateError
from loralign.files import atomic_directory, write_json
from loralign.guard.layer_subspace import LayerSubspace, SubspaceInfo

TENSORS_FILE = "subspace.safetensors"
METADATA_FILE = "subspace.json"
FORMAT_VERSION = 1
# What the first files did not state yet, and what was true of them.
_LATER_FIELDS: dict[str, Any] = {"response_tokens": None}
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_AGAIN = "estimate the subspace again, or copy it again"


def save_subspace(layers: Mapping[str, LayerSubspace], info: SubspaceInfo, directory: Path) -> None:
    """Write layers and their origin into a new directory, whole or not at all.

    Raises:
        OutputError: the directory exists or cannot be written.
    """
    if directory.exists():
        raise OutputError("exists already", place=str(directory), fix="choose another directory or remove it")
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.basis"] = layer.basis.detach().float().cpu().contiguous()
        tensors[f"{name}.eigenvalues"] = layer.eigenvalues.detach().float().cpu().contiguous()
    with atomic_directory(directory) as temporary:
        save_file(tensors, temporary / TENSORS_FILE)
        document: dict[str, Any] = {
            "format": "loralign.subspace",
            "format_version": FORMAT_VERSION,
            "info": asdict(info),
            "layers": {
                name: {
                    "rows": layer.rows,
                    "columns": layer.columns,
                    "rank": layer.rank,
                    "trace": layer.trace,
                    "energy": layer.energy,
                    "half_agreement": layer.half_agreement,
                    "weights": layer.weights,
                }
                for name, layer in layers.items()
            },
            "tensors": {"file": TENSORS_FILE, "sha256": _file_digest(temporary / TENSORS_FILE)},
        }
        write_json(temporary / METADATA_FILE, {**document, "sha256": _document_digest(document)})


def load_subspace(directory: Path) -> tuple[dict[str, LayerSubspace], SubspaceInfo]:
    """Read what :func:`save_subspace` wrote. Nothing is ever unpickled.

    Raises:
        StateError: it is missing, truncated, altered, pickled or of an unknown version.
    """
    document = _read_document(directory)
    path = directory / TENSORS_FILE
    if not path.is_file():
        raise _missing(directory, path)
    try:
        if _file_digest(path) != document["tensors"]["sha256"]:
            raise _damaged(path)
        tensors = load_file(path)
        layers = {name: _layer(name, entry, tensors) for name, entry in document["layers"].items()}
        stated = {**_LATER_FIELDS, **document["info"]}
        info = SubspaceInfo(**{field.name: stated[field.name] for field in fields(SubspaceInfo)})
        if not layers:
            raise ValueError("it has no layers")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"cannot be read as a subspace: {error}", place=str(directory), fix=_AGAIN) from error
    return layers, info


def _read_document(directory: Path) -> dict[str, Any]:
    path = directory / METADATA_FILE
    if not path.is_file():
        raise _missing(directory, path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise StateError(f"is not JSON: {error}", place=str(path), fix=_AGAIN) from error
    if not isinstance(document, dict) or document.get("format") != "loralign.subspace":
        raise StateError("does not describe a subspace", place=str(path), fix="name a directory of loralign fisher")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise StateError(
            f"format version {version!r} is unknown, this is a reader of {FORMAT_VERSION}",
            place=str(path),
            fix="use the loralign that wrote it, or a newer one",
        )
    stated = document.pop("sha256", None)
    if stated != _document_digest(document):
        raise _damaged(path)
    return document


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _layer(name: str, entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> LayerSubspace:
    basis, eigenvalues = tensors[f"{name}.basis"], tensors[f"{name}.eigenvalues"]
    if basis.shape != (entry["rows"], entry["rank"]) or eigenvalues.shape != (entry["rank"],):
        raise ValueError(f"{name} has tensors of shapes {tuple(basis.shape)} and {tuple(eigenvalues.shape)}")
    return LayerSubspace(
        basis, eigenvalues, float(entry["trace"]), int(entry["columns"]), entry["half_agreement"], entry["weights"]
    )


def _damaged(path: Path) -> StateError:
    return StateError("the file is truncated or was altered", place=str(path), fix=_AGAIN)


def _missing(directory: Path, path: Path) -> StateError:
    pickled = [file.name for file in sorted(directory.glob("*")) if file.suffix in _PICKLES]
    if pickled:
        return StateError(f"{pickled[0]} is a pickle, which is never loaded", place=str(directory), fix=_AGAIN)
    return StateError(f"no file {path.name}", place=str(directory), fix="name a directory that holds a subspace")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document_digest(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
