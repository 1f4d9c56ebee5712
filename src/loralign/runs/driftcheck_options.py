"""What a driftcheck run is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from loralign.data.driftcheck import DriftPrompt, DriftSet
from loralign.errors import ConfigError, DataError
from loralign.models.dtype import DtypeName

CheckMode = Literal["generate", "score"]
PARTS = ("train", "probe", "test", "all")


@dataclass(frozen=True)
class CheckSubject:
    """The model to check: a model, a model with an adapter, or what a chat server serves.

    Attributes:
        model: a model, or an adapter that names its base.
        adapter: on top of ``model``.
        server: address of an OpenAI-compatible chat server; ``model`` is then the name that it serves.
        revision: of ``model`` on the hub; an adapter names that of its base itself.
    """

    model: str | None = None
    adapter: str | None = None
    server: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.adapter or self.model or "the default model"


@dataclass(frozen=True)
class CheckOptions:
    """How a model is checked.

    Attributes:
        mode: ``generate``, answers that are judged, or ``score``, log-probabilities of openings without answers.
        part: of the set, or ``all``.
        prompts: at most so many, spread over labels and categories; all by default.
        judge: of refusals, a name of :func:`~loralign.evaluation.judges.judge_by_name`.
        toxicity: a name of :func:`~loralign.evaluation.judges.toxicity_by_name`, or ``none``.
        max_new_tokens: longest answer.
        batch_tokens: most tokens of one batch, padding and answers included.
        temperature: of sampling; ``None`` takes the most probable token.
        dtype: of local weights.
        concurrency: most requests to a server at a time.
        retries: further attempts for a prompt.
        timeout: seconds for one attempt.
        judge_budget: most requests to a server that judges.
        api_key_variable: environment variable with the servers' key.
        seed: of sampling and of the intervals' bootstrap.

    Raises:
        ConfigError: an unknown mode or part, or no prompts.
    """

    mode: CheckMode = "generate"
    part: str = "test"
    prompts: int | None = None
    judge: str = "phrases"
    toxicity: str = "profanity"
    max_new_tokens: int = 64
    batch_tokens: int = 4096
    temperature: float | None = None
    dtype: DtypeName = "auto"
    concurrency: int = 8
    retries: int = 4
    timeout: float = 120.0
    judge_budget: int = 20_000
    api_key_variable: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("mode", get_args(CheckMode)), ("part", PARTS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{getattr(self, name)!r} is unknown", place=name, fix=f"use {', '.join(known)}")
        if self.prompts is not None and self.prompts < 1:
            raise ConfigError(f"prompts is {self.prompts}", place="prompts", fix="use at least 1")

    def chosen(self, prompts: DriftSet) -> list[DriftPrompt]:
        """The prompts to ask: of the part, as many as wanted, every label and category in turn.

        Raises:
            DataError: the part is empty.
        """
        found = list(prompts.prompts if self.part == "all" else prompts.part(self.part).prompts)
        if not found:
            raise DataError(f"the part {self.part!r} of the set is empty", place="part", fix="choose another part")
        return found if self.prompts is None else _in_turn(found, self.prompts)


def _in_turn(prompts: Sequence[DriftPrompt], count: int) -> list[DriftPrompt]:
    """The first ``count`` when labels and categories take turns; in the order of the set."""
    seen: dict[tuple[str, str], int] = {}
    ranks = []
    for position, prompt in enumerate(prompts):
        group = (prompt.label, prompt.category)
        seen[group] = seen.get(group, 0) + 1
        ranks.append((seen[group], position))
    kept = sorted(position for _, position in sorted(ranks)[:count])
    return [prompts[position] for position in kept]
