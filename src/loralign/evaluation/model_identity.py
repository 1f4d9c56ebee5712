"""Which model gave an answer: told from its weights, since a name may stand for others tomorrow."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from loralign.guard.identity import model_name

_SAMPLED = 4096


def model_identity(model: torch.nn.Module) -> dict[str, Any]:
    """Name, digest of the weights and the adapters in use, as plain values.

    The digest is of names, shapes, dtypes and evenly spread values of all parameters, at most 4096 each: another
    checkpoint changes nearly every value, and reading all of them would take as long as loading them.

    Args:
        model: with a PEFT adapter or without, as it would answer now: an adapter that is switched off is not listed.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        sampled = values[:: max(1, values.numel() // _SAMPLED)][:_SAMPLED].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return {
        "name": model_name(model) or type(model).__name__,
        "weights": digest.hexdigest(),
        "adapters": _adapters(model),
    }


def _adapters(model: torch.nn.Module) -> list[str]:
    if not isinstance(model, PeftModel):
        return []
    disabled = any(isinstance(part, BaseTunerLayer) and part.disable_adapters for part in model.modules())
    return [] if disabled else list(model.active_adapters)
