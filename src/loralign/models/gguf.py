"""Converting a GGUF file into safetensors and a tokenizer, once, in a cache directory that is absent or whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralign.errors import ModelError, OutputError
from loralign.files import atomic_directory
from loralign.models.registry import WheelModel

CONVERSION_VERSION = 1
"""Raised whenever the conversion writes something else than before, so that old results are not used."""

_ABANDONED_AFTER = 3600.0  # seconds; a conversion takes less than a minute


def cache_directory() -> Path:
    """Where loralign keeps converted models: ``$LORALIGN_CACHE``, ``$XDG_CACHE_HOME/loralign`` or the usual place."""
    own = os.environ.get("LORALIGN_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "loralign"


def cache_path(model: WheelModel, file: Path, version: str) -> Path:
    """The directory of the converted model: named by wheel version, content of the GGUF file and conversion version."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return cache_directory() / "models" / f"{model.name}-{version}-{digest}-v{CONVERSION_VERSION}"


def converted_model(model: WheelModel, file: Path, version: str) -> Path:
    """The converted form of a wheel's GGUF file; converts it if that was not done before.

    Two processes may convert at once: both write beside the target, and the first to finish gives it its name.

    Raises:
        ModelError: the GGUF file cannot be read.
        OutputError: the cache cannot be written.
    """
    target = cache_path(model, file, version)
    if target.is_dir():
        return target
    _remove_abandoned(target)
    try:
        with atomic_directory(target) as temporary:
            _convert(model, file, temporary)
    except OutputError:
        # The rename is refused if another process was first; its result is as good as ours.
        if not target.is_dir():
            raise
    return target


def _convert(model: WheelModel, file: Path, directory: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        network = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
    except Exception as error:
        # The reader of a damaged file fails in many ways: ValueError, KeyError, IndexError, NumPy's own.
        raise ModelError(
            f"the GGUF file cannot be read: {error}",
            place=str(file),
            fix=f"reinstall it: {model.install_command} --force-reinstall",
        ) from error
    _repair_tokenizer(tokenizer, model, network.config)
    _remove_quantisation_markers(network)
    network.config.pad_token_id = tokenizer.pad_token_id
    generation = network.generation_config
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    try:
        network.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    except SafetensorError as error:
        # safetensors wraps the operating system's refusal, so it would not be seen as one.
        raise OutputError(
            f"cannot write the converted model: {error}",
            place=str(cache_directory()),
            fix="free some space or set LORALIGN_CACHE to another place",
        ) from error


def _remove_quantisation_markers(network: Any) -> None:
    """The weights are plain float32 once read; only these markers still call them quantised, and refuse saving."""
    network.hf_quantizer = None
    network.is_quantized = False
    for owner, attribute in ((network, "quantization_method"), (network.config, "quantization_config")):
        with contextlib.suppress(AttributeError):
            delattr(owner, attribute)


def _repair_tokenizer(tokenizer: Any, model: WheelModel, config: Any) -> None:
    """Set special tokens and length, and restore the digit splitting that a GGUF file only mentions by name.

    Beginning and end come from the model's own configuration: older readers of GGUF tokenizers confuse the two.

    SmolLM2 splits off every digit before it looks at words. Without that, the blank lines before a numbered list
    become other tokens than those the model was trained on.
    """
    for name in ("bos_token", "eos_token"):
        identifier = getattr(config, f"{name}_id")
        if isinstance(identifier, int):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(identifier))
    tokenizer.pad_token = model.padding
    tokenizer.model_max_length = config.max_position_embeddings
    if model.name.startswith("smollm"):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _remove_abandoned(target: Path) -> None:
    """Remove what killed conversions left behind, once it is too old to belong to one that still runs."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(leftover, ignore_errors=True)
