"""Whether an adapter's tensors fit a base model: every key is compared with the module that it would be put on."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from loralign.errors import AdapterError
from loralign.models.adapter_files import AdapterInfo, module_pattern

_PREFIX = "base_model.model."
_LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.weight|\.bias)?"
)


def check_fit(info: AdapterInfo, base: Any, base_name: str) -> None:
    """Compare every tensor's shape with the shape that the base model and the adapter's rank ask for.

    Args:
        info: the adapter.
        base: the base model, an ``nn.Module`` without adapters.
        base_name: what to call the base in the error.

    Raises:
        AdapterError: names the first tensor that does not fit, its shape and the expected one, or the module that
            the base does not have.
    """
    modules = dict(base.named_modules())
    parameters = dict(base.named_parameters())
    fix = f"load it on {info.base_model or 'the base it was trained on'}"
    place = str(info.path)
    for key, shape in info.shapes.items():
        name = key.removeprefix(_PREFIX)
        match = _LORA_KEY.fullmatch(name)
        if match is None:
            # A module trained in full: the tensor must have the shape of the base's own.
            original = parameters.get(name)
            if original is not None and tuple(original.shape) != shape:
                raise _misfit(key, shape, tuple(original.shape), base_name, place, fix)
            continue
        module = modules.get(match["module"])
        if module is None:
            raise AdapterError(
                f"{key}: the base {base_name} has no module {match['module']}, so the adapter is of another base",
                place=place,
                fix=fix,
            )
        if key.endswith(".bias"):
            continue
        size = _outputs_and_inputs(module)
        if size is None:
            continue
        expected = _expected(match["factor"], size, _rank_of(info, match["module"]))
        if shape != expected:
            raise _misfit(key, shape, expected, base_name, place, fix)


def _misfit(
    key: str, shape: tuple[int, ...], expected: tuple[int, ...], base_name: str, place: str, fix: str
) -> AdapterError:
    return AdapterError(
        f"{key} has shape {shape}, but the base {base_name} and the adapter's rank ask for {expected}",
        place=place,
        fix=fix,
    )


def _expected(factor: str, size: tuple[int, int], rank: int) -> tuple[int, ...]:
    outputs, inputs = size
    return {
        "lora_A": (rank, inputs),
        "lora_B": (outputs, rank),
        "lora_embedding_A": (rank, inputs),
        "lora_embedding_B": (outputs, rank),
        "lora_magnitude_vector": (outputs,),
    }[factor]


def _outputs_and_inputs(module: nn.Module) -> tuple[int, int] | None:
    """``(m, n)`` of a module that LoRA can be put on; None for kinds whose factors have more than two dimensions."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return outputs, inputs
    outputs, inputs = getattr(module, "nf", None), getattr(module, "nx", None)
    if isinstance(inputs, int) and isinstance(outputs, int):  # transformers' Conv1D
        return outputs, inputs
    return None


def _rank_of(info: AdapterInfo, module: str) -> int:
    """The rank of one module: ``rank_pattern`` gives exceptions, as regular expressions of the end of the name."""
    exceptions: dict[str, int] = info.config.get("rank_pattern") or {}
    for name, rank in exceptions.items():
        if re.fullmatch(module_pattern(name), module):
            return rank
    return info.rank
