"""The same work on the device under test and on the CPU.

Both compute in float32 and add in another order, so a number agrees to some six digits where it was computed from the
same weights. After steps of Adam, which divides every gradient by its own size, small gradients have lost digits and
three are left: a mistake about a device, a seed or a weight shows in the first.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

CPU = torch.device("cpu")


def placement(device: torch.device) -> dict[str, Any]:
    """What puts a tiny training on a device; without it those of ``tests.training`` are on the CPU."""
    return {"use_cpu": device.type == "cpu"}


def copied(model: nn.Module, device: torch.device) -> Any:
    return copy.deepcopy(model).to(device)


def losses(trainer: Any) -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_trained(trainer: Any, device: torch.device, steps: int) -> None:
    """All steps were taken on the device, with finite losses and factors, and the adapter has learnt something."""
    assert len(losses(trainer)) == steps
    assert torch.tensor(losses(trainer)).isfinite().all()
    assert {parameter.device for parameter in trainer.model.parameters()} == {device}
    factors = {name: p for name, p in trainer.model.named_parameters() if "lora_" in name}
    assert all(bool(p.isfinite().all()) for p in factors.values())
    assert all(bool(p.any()) for name, p in factors.items() if "lora_B" in name)


def records(file: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def assert_near(found: Any, expected: Any, rel: float, absolute: float = 1e-7, place: str = "") -> None:
    """Every number of nested records agrees; words and step numbers are equal."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_near(found[key], value, rel, absolute, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_near(one, other, rel, absolute, f"{place}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=absolute), place
    else:
        assert found == expected, place
