"""Looking at a model in evaluation mode, and leaving it as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off; every module gets its own training flag back."""
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
