"""What a run was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

import loralign
from loralign.errors import ConfigError
from loralign.models import LoadedModel


def describe_environment(model: Any) -> dict[str, Any]:
    """Versions, device and precision, as plain values."""
    parameter = next(model.parameters())
    return {
        "loralign": loralign.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets")},
        "device": torch.cuda.get_device_name() if parameter.is_cuda else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": PartialState().num_processes,
        "base_dtype": str(parameter.dtype).removeprefix("torch."),
    }


def check_devices(training: TrainingArguments) -> None:
    """Make sure that a process trains on one GPU, which TRL refuses otherwise only after the model was loaded.

    Raises:
        ConfigError: several are visible to this process.
    """
    if training.n_gpu > 1:
        raise ConfigError(
            f"{training.n_gpu} GPUs are visible to one process",
            place="CUDA_VISIBLE_DEVICES",
            fix="make one visible, such as CUDA_VISIBLE_DEVICES=0, or begin the command with accelerate launch -m",
        )


def onto_device(loaded: LoadedModel) -> LoadedModel:
    """Move a model to the device of this process, for work outside of a trainer; a quantised one is there already."""
    if not getattr(loaded.model, "is_quantized", False):
        loaded.model.to(PartialState().device)
    return loaded
