"""Scores on tasks of lm-evaluation-harness as they are reported, and what was measured on every document."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from loralign.errors import StateError


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Args:
        task: its name; tasks on local files begin with ``local_``.
        metric: the harness's name of it, such as ``acc`` or ``exact_match``.
        filter: which reading of the model's text it is computed on; ``none`` where there is only one.
        value: as the harness gives it, shares between 0 and 1.
        stderr: standard error of the value over documents; None where the harness has none.
        n: number of documents.
        higher_is_better: None where the harness does not say.
        version: of the task's definition; values of different versions do not compare.
        fewshot: solved examples before each question; None for a group whose tasks differ.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool | None
    version: str
    fewshot: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, metric and filter: what it is a score of."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True)
class TaskSample:
    """A model's answer to one document of a task.

    Args:
        task: its name.
        filter: the reading of the text that ``values`` are of.
        document: number of the document in the task.
        prompt: the text that the model was given; that of the first choice where each choice has its own.
        target: the right answer as the task states it.
        response: the text that the model wrote, or the log-likelihoods of the choices in their order.
        values: by metric, where it is one number per document.
    """

    task: str
    filter: str
    document: int
    prompt: str
    target: str
    response: str | tuple[float, ...]
    values: dict[str, float]


@dataclass(frozen=True)
class TaskScores:
    """Scores of one model on some tasks.

    Args:
        scores: every metric of every task, in the order asked for; groups come after their tasks.
        chat_template: whether prompts went through the tokenizer's chat template.
        limit: most documents of each task; None for all.
        seed: of the draw of solved examples, and of sampling in tasks that sample.
        harness: version of lm-evaluation-harness.
        truncated: tasks with prompts longer than the model's window, of which only the end was read.
        samples: every answer, where they were kept.
    """

    scores: tuple[TaskScore, ...]
    chat_template: bool
    limit: int | None
    seed: int
    harness: str
    truncated: tuple[str, ...] = ()
    samples: tuple[TaskSample, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        samples = None if self.samples is None else [asdict(one) for one in self.samples]
        value = asdict(replace(self, samples=None))
        return value | {"scores": list(value["scores"]), "truncated": list(self.truncated), "samples": samples}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TaskScores:
        """Read what :meth:`to_json` gave.

        Raises:
            StateError: it is something else or incomplete.
        """
        try:
            samples = value["samples"]
            return cls(
                scores=tuple(TaskScore(**one) for one in value["scores"]),
                chat_template=bool(value["chat_template"]),
                limit=value["limit"],
                seed=int(value["seed"]),
                harness=str(value["harness"]),
                truncated=tuple(value["truncated"]),
                samples=None if samples is None else tuple(_sample(one) for one in samples),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"incomplete task scores: {type(error).__name__} {error}", place="task scores", fix="score again"
            ) from error

    def table(self) -> list[dict[str, str]]:
        """Rows for printing: task, metric, value with its standard error, documents and solved examples."""
        return [
            {
                "task": one.task,
                "metric": metric_name(one.metric, one.filter),
                "value": value_text(one.value, one.stderr),
                "n": str(one.n),
                "few-shot": "" if one.fewshot is None else str(one.fewshot),
            }
            for one in self.scores
        ]


def metric_name(metric: str, filter_name: str) -> str:
    """A metric with its filter, where it has one."""
    return metric if filter_name == "none" else f"{metric} ({filter_name})"


def value_text(value: float, stderr: float | None, *, sign: str = "") -> str:
    """A value with its standard error, such as ``0.512 ± 0.021``."""
    return f"{value:{sign}.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def _sample(value: dict[str, Any]) -> TaskSample:
    response = value["response"]
    return TaskSample(**{**value, "response": response if isinstance(response, str) else tuple(response)})
