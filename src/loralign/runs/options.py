"""What every command that trains has in common: model, adapter, output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from loralign.errors import ConfigError
from loralign.guard.fisher_options import OPENING
from loralign.models.dtype import DtypeName
from loralign.training import GuardConfig
from loralign.training.options import option


@dataclass
class RunArguments:
    """The model, its adapter and what to do with what an earlier run left."""

    model: str | None = option(None, "Local directory, hub name or installed model; smollm2-135m-instruct by default.")
    revision: str | None = option(None, "Hub revision of the model.")
    dtype: DtypeName = field(
        default="auto",
        metadata={"help": "Base weights: auto (bfloat16 where it is fast), float32, bfloat16 or float16."},
    )
    load_in_4bit: bool = option(False, "Quantise the base to 4 bits; needs loralign[quantization].")
    lora_r: int = option(16, "LoRA rank.")
    lora_alpha: int = option(32, "LoRA alpha.")
    lora_dropout: float = option(0.0, "LoRA dropout; in align TRL switches it off unless disable_dropout is false.")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Module names, or all-linear."}
    )
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r).")
    resume: bool = option(False, "Go on from the last whole checkpoint in output_dir.")
    overwrite: bool = option(False, "Replace what an earlier run left in output_dir.")


@dataclass
class GuardedArguments(RunArguments):
    """What a guard needs beside its own settings."""

    guard: str = option("none", "The subspace: a directory of loralign fisher; auto estimates it; none holds nothing.")
    alignment_data: list[str] = field(
        default_factory=lambda: ["builtin"],
        metadata={"help": "What must survive: prompts with responses; their validation split is the probe."},
    )
    probe_data: list[str] = field(
        default_factory=list, metadata={"help": "Prompts with responses to measure drift on, in place of that split."}
    )
    fisher_samples: int = option(96, "Samples that guard auto estimates the subspace from.")
    fisher_tokens: int = option(OPENING, "First response tokens that guard auto estimates it on; 0 is all of them.")
    judged_prompts: int = option(0, "Probe prompts answered and judged before and after; 0 is off.")

    def __post_init__(self) -> None:
        check_least(self, fisher_samples=2, fisher_tokens=0, judged_prompts=0)


def check_least(arguments: RunArguments, **least: int) -> None:
    """Make sure that counts are not too small.

    Args:
        arguments: of a command.
        **least: the smallest value of each count, by name.

    Raises:
        ConfigError: one is smaller.
    """
    for name, smallest in least.items():
        if getattr(arguments, name) < smallest:
            raise ConfigError(f"{getattr(arguments, name)} is too small", place=name, fix=f"use at least {smallest}")


def check_budget(run: GuardedArguments, guard: GuardConfig) -> None:
    """Make sure that a budget has something to hold.

    Raises:
        ConfigError: a budget, but no guard.
    """
    if run.guard == "none" and guard.drift_budget is not None:
        raise ConfigError("a budget needs a guard", place="drift_budget", fix="pass --guard auto or a subspace")


COMMON_DEFAULTS: dict[str, Any] = {
    "max_steps": 60,
    "max_length": 256,
    "pad_to_multiple_of": 32,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "weight_decay": 0.0,
    "logging_steps": 5,
    "save_strategy": "steps",
    "save_steps": 20,
    "save_total_limit": 2,
    "report_to": "none",
    "gradient_checkpointing": False,
    "bf16": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "use_cpu": not torch.cuda.is_available(),
    "seed": 0,
}
"""Where the defaults of every training differ from TRL's."""
