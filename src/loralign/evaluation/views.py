"""Looking at a model without its adapter, and leaving it as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import use_adapter

from loralign.errors import AdapterError, ModelError


@contextlib.contextmanager
def adapter_view(model: PreTrainedModel | PeftModel, adapter: str) -> Iterator[None]:
    """Let ``model`` compute with the adapter ``adapter``, or with none where it is ``"base"``.

    PEFT sets ``requires_grad`` of an adapter's parameters whenever it switches; they get their own value back here.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with use_adapter(model, None if adapter == "base" else adapter):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def check_adapter(model: PreTrainedModel | PeftModel, adapter: str) -> None:
    """Check that :func:`adapter_view` can show ``adapter``.

    Raises:
        ModelError: the model has no adapter at all, so that nothing can be switched off.
        AdapterError: the model has adapters, but none of that name.
    """
    if not isinstance(model, PeftModel):
        raise ModelError(
            f"reference {adapter!r} needs a PEFT model, and this is a {type(model).__name__}",
            place="reference",
            fix='give the reference model itself, or "none"',
        )
    if adapter != "base" and adapter not in model.peft_config:
        known = ", ".join(repr(name) for name in model.peft_config)
        raise AdapterError(
            f"the model has no adapter named {adapter!r}",
            place="reference",
            fix=f'use "base", "none" or one of {known}',
        )
