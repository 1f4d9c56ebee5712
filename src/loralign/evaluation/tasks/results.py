"""Reading the harness's result into types of our own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from loralign.errors import ModelError
from loralign.evaluation.tasks.scores import TaskSample, TaskScore


def read_scores(found: Mapping[str, Any]) -> list[TaskScore]:
    """Every metric of every task and group, the tasks in the order of the harness."""
    scores = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric,
                    filter=filter_name,
                    value=float(value),
                    stderr=float(stderr) if _is_number(stderr) else None,
                    n=int(values["sample_len"]),
                    higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                    version=str(found["versions"].get(task)),
                    fewshot=found["n-shot"].get(task),
                )
            )
    return scores


def read_samples(found: Mapping[str, Any]) -> list[TaskSample]:
    """Every answer of every task, with the metrics that are one number per document.

    Raises:
        ModelError: a log-likelihood is not a number, with which any choice would count as chosen.
    """
    return [_sample(task, one) for task, ones in found["samples"].items() for one in ones]


def _sample(task: str, one: Mapping[str, Any]) -> TaskSample:
    values = {metric: one[metric] for metric in one["metrics"]}
    response = _response(one["filtered_resps"], one["resps"])
    if isinstance(response, tuple) and any(math.isnan(likelihood) for likelihood in response):
        raise ModelError(
            f"a log-likelihood is not a number at document {one['doc_id']}",
            place=f"task {task}",
            fix="load the model in float32 or bfloat16, or check its weights",
        )
    return TaskSample(
        task=task,
        filter=str(one["filter"]),
        document=int(one["doc_id"]),
        prompt=str(one["arguments"][0][0]),
        target=str(one["target"]),
        response=response,
        values={metric: float(value) for metric, value in values.items() if _is_number(value)},
    )


def _response(filtered: list[Any], raw: list[list[Any]]) -> str | tuple[float, ...]:
    """Log-likelihoods, of which the harness also says whether greedy decoding would write the choice; or the text."""
    if all(isinstance(one, tuple | list) and len(one) == 2 for one in filtered):
        return tuple(float(likelihood) for likelihood, _ in filtered)
    return "\n\n".join(str(text) for repeats in raw for text in repeats)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.bool_) and math.isfinite(float(value))
