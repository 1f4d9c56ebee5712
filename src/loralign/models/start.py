"""The model that a task adapter starts from: a model, or a model with an alignment adapter merged into it."""

from __future__ import annotations

import warnings
from pathlib import Path

from loralign.errors import AdapterError, ConfigError
from loralign.files import atomic_directory
from loralign.models.adapter import load_adapter
from loralign.models.adapter_files import inspect_adapter
from loralign.models.dtype import DtypeName
from loralign.models.loading import LoadedModel, load_model


def is_adapter(name: str | Path | None) -> bool:
    """Whether a name is the directory of a PEFT adapter."""
    return name is not None and (Path(name).expanduser() / "adapter_config.json").is_file()


def merge_adapter(adapter: str | Path, target: Path) -> None:
    """Merge an adapter into its base in float32 and save the result as a model of its own, whole or not at all.

    Args:
        adapter: a PEFT LoRA directory that names its base.
        target: the model's directory; must not exist. Weights are saved in the precision that ``dtype="auto"`` loads.

    Raises:
        LoralignError: the adapter or its base cannot be loaded, or ``target`` cannot be written.
    """
    info = inspect_adapter(adapter)
    if info.base_model is None:
        raise AdapterError("the adapter does not name its base model", place=str(adapter), fix="save it again")
    loaded = load_model(info.base_model, dtype="float32")
    model, tokenizer, _ = load_adapter(adapter, loaded)
    with warnings.catch_warnings():
        # PEFT leaves the adapter's configuration on the model that it unloads and warns of it later.
        warnings.filterwarnings("ignore", message=".*peft_config.*")
        merged = model.merge_and_unload()
    with atomic_directory(target) as temporary:
        merged.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))


def load_start(
    name: str | None,
    *,
    merged: Path,
    dtype: DtypeName = "auto",
    load_in_4bit: bool = False,
    revision: str | None = None,
) -> LoadedModel:
    """Load what a task adapter starts from.

    Args:
        name: a model as for :func:`load_model`, or the directory of an alignment adapter, which is merged into its
            base first.
        merged: where a merged model is kept; used again where it exists.
        dtype: type of the weights.
        load_in_4bit: quantise the linear layers.
        revision: of a hub model.

    Raises:
        LoralignError: as :func:`load_model` and :func:`merge_adapter`; a revision with an adapter.
    """
    if not is_adapter(name):
        return load_model(name, dtype=dtype, load_in_4bit=load_in_4bit, revision=revision)
    if revision is not None:
        raise ConfigError("an adapter names its base's revision itself", place="revision", fix="leave it out")
    if not (merged / "config.json").is_file():
        merge_adapter(str(name), merged)
    return load_model(str(merged), dtype=dtype, load_in_4bit=load_in_4bit)
