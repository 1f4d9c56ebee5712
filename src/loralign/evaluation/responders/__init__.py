"""Engines that answer prompts behind one face: a model in this process, or any OpenAI-compatible chat server."""

from __future__ import annotations

from loralign.evaluation.responders.local import LocalResponder
from loralign.evaluation.responders.protocol import Keep, Responder
from loralign.evaluation.responders.server import ServerResponder

__all__ = ["Keep", "LocalResponder", "Responder", "ServerResponder"]
