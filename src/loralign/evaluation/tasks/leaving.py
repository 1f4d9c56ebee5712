"""Lending a model to lm-evaluation-harness and having it back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from loralign.guard.modes import evaluating


@contextlib.contextmanager
def left_as_found(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, after which every module has its own training flag back.

    The harness ties a model's weights anew when it takes it, which would change a model whose input and output
    embeddings were set apart, by a merge for example. Within the block that does nothing.
    """
    parts = [part for part in model.modules() if hasattr(type(part), "tie_weights")]
    for part in parts:
        part.__dict__["tie_weights"] = _do_nothing
    try:
        with evaluating(model):
            yield
    finally:
        for part in parts:
            del part.__dict__["tie_weights"]


def _do_nothing(*_: Any, **__: Any) -> None:
    """In place of tying weights."""
