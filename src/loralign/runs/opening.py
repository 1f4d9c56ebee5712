"""Models with their adapters, loaded to be scored: one way for every command that measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralign.errors import AdapterError
from loralign.models import LoadedModel, inspect_adapter, is_adapter, load_adapter, load_model
from loralign.models.dtype import DtypeName
from loralign.runs.environment import onto_device


@dataclass(frozen=True)
class Local:
    """A model in this process.

    Attributes:
        model: with its adapter, if it has one, on this process's device and in evaluation mode.
        tokenizer: of the model.
    """

    model: Any
    tokenizer: Any


def open_local(
    model: str | None, adapter: str | Path | None = None, dtype: DtypeName = "auto", revision: str | None = None
) -> Local:
    """Load a model, an adapter with the base that it names, or an adapter on a base that is named beside it.

    Args:
        model: a model, or an adapter's directory; with ``adapter`` its base, by default the one that it names.
        adapter: a PEFT LoRA directory.
        dtype: of the base weights.
        revision: of a hub model that is named; a base that is not has the one that the adapter names with it.

    Raises:
        LoralignError: model or adapter cannot be loaded.
    """
    if adapter is None and is_adapter(model):
        adapter, model = model, None
    if adapter is None:
        loaded = onto_device(load_model(model, dtype=dtype, revision=revision))
        return Local(loaded.model.eval(), loaded.tokenizer)
    peft_model, tokenizer, _ = load_adapter(adapter, onto_device(open_base(adapter, model, dtype, revision)))
    return Local(peft_model.eval(), tokenizer)


def open_base(adapter: str | Path, model: str | None, dtype: DtypeName, revision: str | None = None) -> LoadedModel:
    """Load the base of an adapter: the one named, or the one that the adapter names, in the revision that it names.

    Args:
        adapter: a PEFT LoRA directory.
        model: the base; by default the one that the adapter names.
        dtype: of its weights.
        revision: of ``model``; of the model that the adapter names by default that of the adapter.

    Raises:
        AdapterError: the adapter is damaged, or names no base although none was given.
    """
    info = inspect_adapter(adapter)
    if model is None and info.base_model is None:
        raise AdapterError("the adapter does not name its base model", place=str(adapter), fix="pass --model")
    if model is None or (model == info.base_model and revision is None):
        revision = info.revision
    return load_model(model or info.base_model, dtype=dtype, revision=revision)
