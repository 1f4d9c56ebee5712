"""The answers of a model to a labelled set of prompts, and where an interrupted run of them goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from loralign.evaluation.responders.protocol import Responder
from loralign.evaluation.response_store import AskedPrompt, ResponseStore

logger = logging.getLogger(__name__)


def conversations(prompts: Sequence[AskedPrompt]) -> list[list[dict[str, Any]]]:
    """Each prompt as the user's only turn."""
    return [[{"role": "user", "content": prompt.prompt}] for prompt in prompts]


def collect_responses(responder: Responder, store: ResponseStore) -> list[str]:
    """Let a responder answer the prompts of a store that have no answer yet.

    Whatever ends the run early, the answers given until then stay in the store, and the same call with a store opened
    on the same file answers the rest.

    Args:
        responder: answers; its settings should be among those of the store.
        store: open; stays open.

    Returns:
        All answers, in the order of the store's prompts.

    Raises:
        DataError: a prompt is longer than the model's window.
        ModelError: the model has no chat template.
        ServerError: a server fails for good.
        OutputError: the answers cannot be written.
        StateError: the responder left prompts without an answer.
    """
    pending = store.pending
    if pending and len(store):
        logger.info("%d of %d prompts are answered already", len(store), len(store.prompts))
    if pending:
        asked = conversations([store.prompts[index] for index in pending])
        responder.respond(asked, lambda position, answer: store.keep(pending[position], answer))
    return store.responses()
