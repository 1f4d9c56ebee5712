"""Which base a subspace belongs to: names, shapes and weights of the layers that it covers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralign.lora import canonical_name

_SAMPLED_WEIGHTS = 4096
# Types whose rounding to bfloat16 is that of the checkpoint itself.
_COMPARABLE = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class LayerIdentity:
    """What is known of one layer's frozen weight ``W (m, n)``.

    Attributes:
        rows: ``m``.
        columns: ``n``.
        weights: a digest of the weight's values, or ``None`` where its type does not allow a comparison between loads
            (quantised, float16, not in memory).
    """

    rows: int
    columns: int
    weights: str | None


def model_name(model: nn.Module) -> str | None:
    """The name or path that a transformers model was loaded from, if it knows.

    A model that loralign merged from an adapter has a name of its own, by its content.
    """
    config = getattr(model, "config", None)
    return getattr(config, "loralign_start", None) or getattr(config, "_name_or_path", None) or None


def model_revision(model: nn.Module) -> str | None:
    """The hub's commit that a transformers model was loaded from, if it was."""
    return getattr(getattr(model, "config", None), "_commit_hash", None) or None


def base_modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules that hold the frozen weights, by canonical name; those that the model does not have are left out."""
    wanted = set(names)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if canonical_name(name) in wanted:
            found[canonical_name(name)] = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return found


def layer_identity(base: nn.Module) -> LayerIdentity:
    """Identity of a ``Linear``, transposed ``Conv1D`` or quantised linear module."""
    weight: Any = base.weight
    if isinstance(base, Conv1D):
        columns, rows = weight.shape
    else:
        rows = int(getattr(base, "out_features", weight.shape[0]))
        columns = int(getattr(base, "in_features", weight.shape[-1]))
    return LayerIdentity(int(rows), int(columns), _digest(weight))


def fingerprint(layers: Mapping[str, LayerIdentity]) -> str:
    """SHA-256 of names, shapes and weight digests: one word for a base model, as far as it is covered."""
    text = "\n".join(f"{name} {one.rows} {one.columns} {one.weights}" for name, one in sorted(layers.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(weight: Tensor) -> str | None:
    """SHA-256 over evenly strided weights rounded to bfloat16.

    The rounding makes a float32 and a bfloat16 load of the same checkpoint equal.
    """
    if weight.dtype not in _COMPARABLE or weight.is_meta:
        return None
    flat = weight.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED_WEIGHTS)].to(torch.bfloat16)
    return hashlib.sha256(sample.view(torch.int16).cpu().numpy().tobytes()).hexdigest()
