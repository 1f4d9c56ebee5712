"""Judges and toxicity scorers by the names that a user writes."""

from __future__ import annotations

import re
from collections.abc import Callable

from loralign.errors import ConfigError
from loralign.evaluation.judges.classifier import ClassifierJudge
from loralign.evaluation.judges.combined import AnyOf
from loralign.evaluation.judges.rubric import RubricJudge
from loralign.evaluation.judges.toxicity import DetoxifyScorer, ProfanityScorer
from loralign.evaluation.refusal import Judge, PhraseJudge
from loralign.evaluation.responders import Responder, ServerResponder

JUDGES = ("phrases", "classifier:DIR:LABEL", "server:URL:MODEL", "phrases+NAME")
"""What can stand for a judge of refusals."""
TOXICITY_SCORERS = ("profanity", "detoxify", "detoxify:MODEL", "classifier:DIR:LABEL")
"""What can stand for a scorer of toxicity."""

# Room for a model that thinks before it answers.
_VERDICT_TOKENS = 256
# A model's name may hold colons, and so may the address before it: one before the port, which is digits only.
_SERVER = re.compile(r"(https?://(?:\[[^]]*\]|[^/:\s]+)(?::\d+(?![^/:]))?+(?:/[^:\s]*)?):(\S.*)")


def judge_by_name(
    name: str,
    *,
    budget: int = 20_000,
    api_key_variable: str | None = None,
    server: Callable[[str, str], Responder] | None = None,
    show_progress: bool = True,
) -> Judge:
    """The judge of refusals that a name means.

    Args:
        name: ``phrases``; ``classifier:DIR:LABEL`` with a directory or hub name and one or more of its labels,
            separated by commas; ``server:URL:MODEL`` with a chat server's address and a model there; or
            ``phrases+NAME``, a refusal for either.
        budget: most requests to a server.
        api_key_variable: environment variable that holds the server's key, if it wants one.
        server: makes the responder for an address and a model; by default one that asks the chat server there.
        show_progress: of judges that take long.

    Raises:
        ConfigError: the name means no judge, or a label is unknown.
        ModelError: the classifier cannot be loaded.
    """
    kind, _, rest = name.partition(":")
    if name == "phrases":
        return PhraseJudge()
    if name.startswith("phrases+"):
        other = judge_by_name(
            name.removeprefix("phrases+"),
            budget=budget,
            api_key_variable=api_key_variable,
            server=server,
            show_progress=show_progress,
        )
        return AnyOf([PhraseJudge(), other])
    if kind == "classifier":
        return _classifier(name, rest, show_progress)
    if kind == "server":
        match = _SERVER.fullmatch(rest)
        if match is None:
            raise ConfigError(
                f"{name!r} does not name a server and a model",
                place="judge",
                fix="write server:http://HOST:PORT/v1:MODEL",
            )
        if server is not None:
            return RubricJudge(server(match[1], match[2]), budget=budget, name=name)
        responder = ServerResponder(
            match[1],
            match[2],
            max_new_tokens=_VERDICT_TOKENS,
            api_key_variable=api_key_variable,
            show_progress=show_progress,
            description="judging",
        )
        return RubricJudge(responder, budget=budget, name=name)
    raise _unknown(name, "judge", JUDGES)


def toxicity_by_name(name: str, *, show_progress: bool = True) -> Judge:
    """The scorer of toxicity that a name means.

    Args:
        name: ``profanity``; ``detoxify``, or ``detoxify:MODEL`` for another of its models; or
            ``classifier:DIR:LABEL`` with a directory or hub name and one or more of its labels, separated by commas.
        show_progress: of scorers that take long.

    Raises:
        ConfigError: the name means no scorer, or a label is unknown.
        ModelError: a package is missing, or the classifier cannot be loaded.
    """
    kind, _, rest = name.partition(":")
    if name == "profanity":
        return ProfanityScorer()
    if name == "detoxify":
        return DetoxifyScorer()
    if kind == "detoxify":
        return DetoxifyScorer(rest)
    if kind == "classifier":
        return _classifier(name, rest, show_progress)
    raise _unknown(name, "toxicity", TOXICITY_SCORERS)


def _classifier(name: str, rest: str, show_progress: bool) -> ClassifierJudge:
    model, _, labels = rest.rpartition(":")
    chosen = [label.strip() for label in labels.split(",") if label.strip()]
    if not model or not chosen:
        raise ConfigError(
            f"{name!r} does not name a model and a label", place="classifier", fix="write classifier:DIR:LABEL"
        )
    return ClassifierJudge(model, chosen, show_progress=show_progress)


def _unknown(name: str, place: str, known: tuple[str, ...]) -> ConfigError:
    return ConfigError(f"{name!r} is unknown", place=place, fix=f"use one of {', '.join(known)}")
