"""The two factors of every layer of a saved LoRA adapter, read without its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from loralign.errors import AdapterError
from loralign.lora import canonical_name
from loralign.models.adapter_files import WEIGHTS_FILE, inspect_adapter

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class SavedFactors:
    """``A (r, n)`` and ``B (m, r)`` of one layer, as they were saved; its update is ``s·B A``."""

    A: Tensor
    B: Tensor


def saved_factors(path: str | Path) -> dict[str, SavedFactors]:
    """Read the factors of an adapter's linear layers, by canonical name.

    Args:
        path: a directory that PEFT saved.

    Raises:
        AdapterError: as :func:`~loralign.models.adapter_files.inspect_adapter`; a layer lacks a factor; there are none.
    """
    file = inspect_adapter(path).path / WEIGHTS_FILE
    tensors = load_file(file)
    names = [key.removesuffix(_DOWN) for key in tensors if key.endswith(_DOWN)]
    for name in names:
        if name + _UP not in tensors:
            raise AdapterError(f"{name} has no factor B", place=str(file), fix="save the adapter again")
    if not names:
        raise AdapterError("the adapter has no linear LoRA layer", place=str(file), fix="use an adapter of plain LoRA")
    return {canonical_name(name): SavedFactors(tensors[name + _DOWN], tensors[name + _UP]) for name in names}
