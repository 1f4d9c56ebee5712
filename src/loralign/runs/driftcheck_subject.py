"""From what a driftcheck run is to check to a model or a server that answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loralign.errors import ConfigError
from loralign.evaluation.responders.local import LocalResponder
from loralign.evaluation.responders.server import ServerResponder
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
from loralign.runs.environment import describe_environment
from loralign.runs.opening import Local, open_local


@dataclass
class Opened:
    """A subject that is loaded when it is first needed: a run that only has to be judged again needs no model."""

    subject: CheckSubject
    local: Local | None = field(default=None, repr=False)

    def environment(self) -> dict[str, Any]:
        """Versions and device, where the model is in this process."""
        return {} if self.local is None else describe_environment(self.local.model)


def open_subject(opened: Opened, options: CheckOptions) -> Local:
    """Load the model of a subject, once.

    Raises:
        LoralignError: model or adapter cannot be loaded.
        ConfigError: the subject is a server's.
    """
    subject = opened.subject
    if subject.server is not None:
        raise ConfigError("a server gives no log-probabilities", place="--mode", fix="use generate")
    if opened.local is None:
        opened.local = open_local(subject.model, subject.adapter, options.dtype, subject.revision)
    return opened.local


def open_responder(opened: Opened, options: CheckOptions) -> LocalResponder | ServerResponder:
    """Something that answers for a subject.

    Raises:
        LoralignError: the model cannot be loaded, or a setting is out of range.
    """
    subject = opened.subject
    if subject.server is not None:
        if subject.adapter is not None or subject.model is None:
            raise ConfigError(
                "a server serves one model by its name", place="--server", fix="name that model, and no adapter"
            )
        return ServerResponder(
            subject.server,
            subject.model,
            concurrency=options.concurrency,
            retries=options.retries,
            timeout=options.timeout,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature or 0.0,
            api_key_variable=options.api_key_variable,
        )
    local = open_subject(opened, options)
    return LocalResponder(
        local.model,
        local.tokenizer,
        name=subject.name,
        max_new_tokens=options.max_new_tokens,
        batch_tokens=options.batch_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
