"""Putting a saved LoRA adapter on its base, after everything that can be wrong with it has been checked."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict

from loralign.errors import AdapterError, ConfigError
from loralign.files import exists
from loralign.models.adapter_files import WEIGHTS_FILE, AdapterInfo, inspect_adapter
from loralign.models.adapter_fit import check_fit
from loralign.models.loading import LoadedModel, load_model
from loralign.models.registry import wheel_model, wheel_model_of_cache_path
from loralign.models.sources import ModelSource

__all__ = ["AdapterInfo", "inspect_adapter", "load_adapter", "named_base", "portable_base_name", "same_base"]


def load_adapter(
    path: str | Path, base: LoadedModel | None = None, *, is_trainable: bool = False
) -> tuple[Any, Any, ModelSource]:
    """Load a LoRA adapter that PEFT saved, on its base model.

    Args:
        path: the adapter's directory.
        base: the base model; None loads the one that the adapter names. It must not carry an adapter already, and is
            wrapped in place, as PEFT does.
        is_trainable: whether the adapter's factors get gradients.

    Returns:
        The PEFT model, whose configuration names the base that it is on now, the base's tokenizer, and its source.

    Raises:
        AdapterError: the adapter is damaged, not LoRA, pickled, not finite, incomplete, of another base, or names no
            base although none was given.
        ModelError: the base that the adapter names cannot be loaded.
    """
    info = inspect_adapter(path)
    if base is None:
        if info.base_model is None:
            raise AdapterError(
                "the adapter does not name its base model", place=str(path), fix="name the base model yourself"
            )
        base = load_model(info.base_model, revision=info.revision)
    check_fit(info, base.model, base.source.name)
    with warnings.catch_warnings():
        # Missing keys are an error below, with the keys' names.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            model = PeftModel.from_pretrained(base.model, str(info.path), is_trainable=is_trainable)
        except Exception as error:
            # PEFT reports a configuration that it cannot use through as many classes as causes.
            problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise AdapterError(
                f"cannot be put on {base.source.name}: {problem}", place=str(path), fix="save the adapter again"
            ) from error
    _check_complete(model, info)
    # The file may name another base, or another revision of it, and the adapter may be saved again.
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base.source.name, base.source.hub_revision
    return model, base.tokenizer, base.source


def named_base(info: AdapterInfo, model: str | None = None, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of the base to put an adapter on: the one that is given, or the one that the adapter names.

    Args:
        info: the adapter.
        model: the base as it was given.
        revision: of ``model``; that of the adapter where ``model`` is the base that the adapter names.

    Raises:
        AdapterError: the adapter names no base although none was given.
        ConfigError: a revision without a model.
    """
    if model is None:
        if info.base_model is None:
            raise AdapterError("the adapter does not name its base model", place=str(info.path), fix="pass --model")
        if revision is not None:
            raise ConfigError(
                "an adapter names its base's revision itself", place="revision", fix="leave it out, or pass --model too"
            )
        return info.base_model, info.revision
    if revision is None and info.base_model is not None and same_base(model, info.base_model):
        revision = info.revision
    return model, revision


def same_base(one: str, other: str) -> bool:
    """Whether two names are of one base: equal, of the same installed model, or of the same directory."""
    one, other = portable_base_name(one), portable_base_name(other)
    if one == other:
        return True
    return exists(one) and exists(other) and Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def portable_base_name(location: str) -> str:
    """The base's name to record in an adapter that will travel: a wheel's cache path becomes the wheel model's name.

    Any other name or path is returned as it is.
    """
    known = wheel_model(location) or wheel_model_of_cache_path(location)
    return known.name if known else location


def _check_complete(model: Any, info: AdapterInfo) -> None:
    """A layer without its factors would silently keep fresh ones: B = 0, so no adaptation there."""
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = sorted(set(wanted) - set(info.shapes))
    if missing:
        raise AdapterError(
            f"{len(missing)} tensors are missing, first {missing[0]}",
            place=str(info.path / WEIGHTS_FILE),
            fix="save the adapter again, or use the base it was trained on",
        )
