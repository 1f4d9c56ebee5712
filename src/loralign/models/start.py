"""The model that a task adapter starts from: a model, or a model with an alignment adapter merged into it."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from loralign.errors import AdapterError, ConfigError, OutputError, StateError
from loralign.files import atomic_directory, is_file
from loralign.models.adapter import load_adapter, portable_base_name
from loralign.models.adapter_files import AdapterInfo, inspect_adapter
from loralign.models.dtype import DtypeName
from loralign.models.gguf import cache_directory
from loralign.models.loading import LoadedModel, load_model

START_NAME = "loralign_start"
"""Key of a merged model's configuration: its base and the digest of the adapter, the same wherever it is kept."""


def is_adapter(name: str | Path | None) -> bool:
    """Whether a name is the directory of a PEFT adapter."""
    return name is not None and is_file(Path(name) / "adapter_config.json")


def merge_adapter(adapter: str | Path, target: Path) -> None:
    """Merge an adapter into its base in float32 and save the result as a model of its own, whole or not at all.

    Args:
        adapter: a PEFT LoRA directory that names its base.
        target: the model's directory; must not exist.

    Raises:
        LoralignError: the adapter or its base cannot be loaded, or ``target`` cannot be written.
    """
    info = inspect_adapter(adapter)
    if info.base_model is None:
        raise AdapterError("the adapter does not name its base model", place=str(adapter), fix="save it again")
    loaded = load_model(info.base_model, dtype="float32", revision=info.revision)
    model, tokenizer, _ = load_adapter(adapter, loaded)
    with warnings.catch_warnings():
        # PEFT leaves the adapter's configuration on the model that it unloads and warns of it later.
        warnings.filterwarnings("ignore", message=".*peft_config.*")
        merged = model.merge_and_unload()
    setattr(merged.config, START_NAME, f"{portable_base_name(info.base_model)}+{adapter_digest(info)}")
    with atomic_directory(target) as temporary:
        merged.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))


def merged_model(adapter: str | Path) -> Path:
    """The cached model of an adapter merged into its base, made if it was not before; named by the adapter's content.

    Raises:
        LoralignError: as :func:`merge_adapter`.
    """
    target = cache_directory() / "merged" / adapter_digest(inspect_adapter(adapter))
    if not (target / "config.json").is_file():
        try:
            merge_adapter(adapter, target)
        except OutputError:
            # Where two processes merge at once, the first to finish gives the directory its name.
            if not (target / "config.json").is_file():
                raise
    return target


def load_start(
    name: str | None, *, dtype: DtypeName = "auto", load_in_4bit: bool = False, revision: str | None = None
) -> LoadedModel:
    """Load what a task adapter starts from.

    Args:
        name: a model as for :func:`load_model`, or the directory of an alignment adapter, which is merged into its
            base first; the merged model is cached.
        dtype: type of the weights.
        load_in_4bit: quantise the linear layers.
        revision: of a hub model.

    Raises:
        LoralignError: as :func:`load_model` and :func:`merge_adapter`; a revision with an adapter.
    """
    if name is None or not is_adapter(name):
        return load_model(name, dtype=dtype, load_in_4bit=load_in_4bit, revision=revision)
    if revision is not None:
        raise ConfigError("an adapter names its base's revision itself", place="revision", fix="leave it out")
    return load_model(str(merged_model(name)), dtype=dtype, load_in_4bit=load_in_4bit)


def keep_start(loaded: LoadedModel, target: Path) -> str:
    """The name of a start for an adapter to record: a merged model is copied to ``target`` first, out of the cache.

    Args:
        loaded: of :func:`load_start`.
        target: where a merged model is kept; one of the same adapter that is there already stays.

    Raises:
        OutputError: it cannot be written.
        StateError: what is there already is of another adapter.
    """
    location = Path(loaded.source.location)
    if cache_directory() / "merged" not in location.parents:
        return portable_base_name(loaded.source.name)
    if target.exists():
        # An adapter saved beside it would be put on other weights than it was trained on.
        if _start_name(target) != getattr(loaded.model.config, START_NAME, None):
            raise StateError("is the start of another adapter", place=str(target), fix="choose another output_dir")
    else:
        with atomic_directory(target) as temporary:
            shutil.copytree(location, temporary, dirs_exist_ok=True)
    return str(target.resolve())


def adapter_digest(info: AdapterInfo) -> str:
    """Of an adapter's weights and of what names its base: the same wherever the adapter is kept."""
    digest = hashlib.sha256(repr((info.base_model, info.config.get("revision"))).encode())
    for file in sorted(info.path.glob("adapter_*")):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _start_name(directory: Path) -> Any:
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8")).get(START_NAME)
    except (OSError, ValueError, AttributeError):
        return None
