"""A language model as judge: it reads a rubric and says how probable it is that a response has the property."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from loralign.errors import ConfigError, LoralignError, ModelError
from loralign.evaluation.judges.errors import JudgingError
from loralign.evaluation.judges.inputs import judge_spoken
from loralign.evaluation.judges.questions import REFUSAL_RUBRIC, REMINDER, question
from loralign.evaluation.judges.verdicts import read_verdict
from loralign.evaluation.responders.protocol import Responder

_log = logging.getLogger(__name__)


class RubricJudge:
    """Asks a language model for a verdict on every response, within a budget of requests.

    Equal pairs of prompt and response are asked about once, also across calls. An answer without a verdict is asked for
    once again; a second one without counts as unreadable and scores 0.0, unless there are too many of them. When the
    budget is used up or the model cannot be reached, the error holds what was found, and a later call goes on from
    there. The verdicts are as repeatable as the model's answers: let it answer greedily.

    Args:
        ask: what answers: a responder, such as one that asks a chat server, or a function from a question to an answer.
        rubric: the property in words, and what counts as it.
        budget: most answers that are asked for over the judge's life, second attempts included; attempts that a
            responder makes to reach its server are not counted.
        max_characters: most of a prompt and of a response that is shown, its beginning and its end.
        most_unreadable: share of unreadable answers beyond which the model is no judge.
        name: what reports call it.

    Attributes:
        requests: answers asked for so far.
        unparsable: answers without a verdict so far, second attempts included.
        unreadable: pairs that got none in both attempts.

    Raises:
        ConfigError: the rubric is empty, or a number is out of range.
    """

    def __init__(
        self,
        ask: Responder | Callable[[str], str],
        rubric: str = REFUSAL_RUBRIC,
        budget: int = 20_000,
        *,
        max_characters: int = 4000,
        most_unreadable: float = 0.25,
        name: str | None = None,
    ) -> None:
        if not rubric.strip():
            raise ConfigError("the rubric is empty", place="rubric", fix="say what the property is")
        for option, value in (("budget", budget), ("max_characters", max_characters)):
            if value < 1:
                raise ConfigError(f"{option} is {value}", place=option, fix="give a positive number")
        if not 0 <= most_unreadable <= 1:
            raise ConfigError(f"most_unreadable is {most_unreadable}", place="most_unreadable", fix="give a share")
        self._ask, self._rubric, self._budget = ask, rubric, budget
        self._max_characters, self._most_unreadable = max_characters, most_unreadable
        self._verdicts: dict[str, float] = {}
        self.name = name or f"rubric:{getattr(ask, 'name', getattr(ask, '__name__', 'model'))}"
        self.requests = self.unparsable = self.unreadable = 0

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The probability of the property for every response, in order.

        Raises:
            DataError: there are not as many prompts as responses.
            JudgingError: the budget is used up, the model cannot be asked, or too many of its answers are unreadable;
                the error holds the scores that were found.
        """
        return judge_spoken(prompts, responses, self._judge)

    def _judge(self, prompts: list[str], responses: list[str]) -> list[float]:
        pairs = zip(prompts, responses, strict=True)
        questions = [question(self._rubric, *pair, self._max_characters) for pair in pairs]
        wanted = [each for each in dict.fromkeys(questions) if each not in self._verdicts]
        try:
            self._settle(wanted)
        except LoralignError as error:
            known = [self._verdicts.get(each) for each in questions]
            raise JudgingError(error.problem, place=error.place, fix=error.fix, scores=known) from error
        return [self._verdicts[each] for each in questions]

    def _settle(self, wanted: Sequence[str]) -> None:
        left = self._attempt(self._attempt(wanted, ""), REMINDER)
        if not left:
            return
        unreadable, judged = self.unreadable + len(left), len(self._verdicts) + len(left)
        if unreadable > self._most_unreadable * judged:
            raise ModelError(
                f"{unreadable} of {judged} responses got no verdict, although the model was asked twice",
                place=self.name,
                fix="use a model that keeps to the format of its answer",
            )
        self.unreadable = unreadable
        self._verdicts |= dict.fromkeys(left, 0.0)
        _log.warning("%s: %d responses got no verdict and score 0", self.name, len(left))

    def _attempt(self, wanted: Sequence[str], suffix: str) -> list[str]:
        """Ask about as many as the budget allows and keep their verdicts; gives those whose answer holds none."""
        affordable = wanted[: max(0, self._budget - self.requests)]
        answers: dict[int, str] = {}
        try:
            self._respond([each + suffix for each in affordable], answers.__setitem__)
        finally:
            self.requests += len(answers)
            verdicts = {affordable[index]: read_verdict(answer) for index, answer in answers.items()}
            self._verdicts |= {each: verdict for each, verdict in verdicts.items() if verdict is not None}
            unread = [each for each in affordable if each in verdicts and verdicts[each] is None]
            self.unparsable += len(unread)
        if len(answers) < len(affordable):
            raise ModelError(
                f"{len(affordable) - len(answers)} of {len(affordable)} questions got no answer",
                place=self.name,
                fix="run again",
            )
        if len(affordable) < len(wanted):
            raise ConfigError(
                f"the budget of {self._budget} requests is used up, and {len(wanted) - len(affordable)} responses are "
                "left to be judged",
                place=self.name,
                fix="raise the budget",
            )
        return unread

    def _respond(self, questions: Sequence[str], keep: Callable[[int, str], None]) -> None:
        if not questions:
            return
        if hasattr(self._ask, "respond"):
            self._ask.respond([[{"role": "user", "content": each}] for each in questions], keep)
        else:
            for index, each in enumerate(questions):
                keep(index, self._ask(each))
