"""Which floating point type the frozen base is loaded in."""

from __future__ import annotations

from typing import Literal

import torch

from loralign.errors import ModelError

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: DtypeName = "auto") -> torch.dtype:
    """The torch type of a name; ``"auto"`` is bfloat16 where the machine multiplies in it natively, else float32.

    The base is frozen and LoRA's factors stay in float32, so bfloat16 costs little precision and saves most of the
    time. A machine that only emulates bfloat16 would be slower with it.

    Raises:
        ModelError: the name is not one of auto, float32, bfloat16, float16.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    if name not in _DTYPES:
        raise ModelError(f"no dtype named {name!r}", place="dtype", fix=f"use one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def has_fast_bfloat16() -> bool:
    """Whether this machine has bfloat16 matrix products in hardware: on its GPU if it has one, else on its CPU."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
