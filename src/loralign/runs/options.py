"""What every command that trains has in common: model, adapter, output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loralign.models.dtype import DtypeName


def option(default: Any, text: str) -> Any:
    """A field with a default and a line of help."""
    return field(default=default, metadata={"help": text})


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
    lora_dropout: float = option(0.0, "LoRA dropout; TRL switches it off unless disable_dropout is false.")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Module names, or all-linear."}
    )
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r).")
    resume: bool = option(False, "Go on from the last whole checkpoint in output_dir.")
    overwrite: bool = option(False, "Replace what an earlier run left in output_dir.")
