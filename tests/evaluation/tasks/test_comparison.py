from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loralign.errors import DataError, StateError
from loralign.evaluation.tasks import harness
from loralign.evaluation.tasks.comparison import compare_tasks
from loralign.evaluation.tasks.harness import task_scores
from loralign.evaluation.tasks.local import local_task
from loralign.evaluation.tasks.scores import TaskSample, TaskScore, TaskScores
from tests.evaluation.models import build, character_tokenizer, with_adapter
from tests.evaluation.tasks.files import sst2_file


def made(values: list[float], *, keep: bool = True, metric: str = "acc", value: float | None = None, **changes: Any):
    mean = float(np.mean(values)) if value is None else value
    one = TaskScore("task", metric, "none", mean, 0.1, len(values), True, "1", 0)
    samples = tuple(
        TaskSample("task", "none", number, f"Question {number}?", "1", (-1.0, -2.0), {metric: right})
        for number, right in enumerate(values)
    )
    settings = {"chat_template": True, "limit": None, "seed": 0, "harness": "0.4.13", **changes}
    return TaskScores((one,), samples=samples if keep else None, **settings)


def test_differences_are_paired() -> None:
    base, tuned = [1.0, 0, 1, 1, 0, 1, 0, 1], [1.0, 0, 0, 1, 0, 1, 0, 1]
    (row,) = compare_tasks({"base": made(base), "adapter": made(tuned)})
    change = row.differences["adapter"]
    assert change.value == pytest.approx(-1 / 8)
    differences = np.subtract(tuned, base)
    assert change.stderr == pytest.approx(np.sqrt(((differences - differences.mean()) ** 2).sum() / 7 / 8))
    assert change.stderr < np.hypot(np.std(base, ddof=1), np.std(tuned, ddof=1)) / np.sqrt(8)
    assert list(row.differences) == ["adapter"]
    assert (row.n, row.higher_is_better) == (8, True)


def test_a_task_that_two_names_hold_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a group and one of its members: twice the documents would have too small a standard error."""
    found = made([1.0, 0, 1, 1])
    monkeypatch.setattr(harness, "_run", lambda *_, **__: None)
    monkeypatch.setattr(harness, "read_scores", lambda _: list(found.scores))
    monkeypatch.setattr(harness, "read_samples", lambda _: list(found.samples or ()))
    file = sst2_file(tmp_path)
    tasks = [local_task("sst2", file), {**local_task("sst2", file), "task": "again"}]
    scores = task_scores(build("llama"), character_tokenizer(), tasks, keep_samples=True, show_progress=False)
    assert (scores.scores, scores.samples) == (found.scores, found.samples)


def test_no_standard_error_where_there_is_nothing_to_pair() -> None:
    values = [1.0, 0, 1]
    for before, after in (
        (made(values, keep=False), made(values)),
        (made(values), made(values, keep=False)),
        (made([1.0]), made([0.0])),
        # A correlation is no mean over documents.
        (made(values, metric="mcc", value=0.1), made(values, metric="mcc", value=0.2)),
    ):
        (row,) = compare_tasks({"base": before, "adapter": after})
        assert row.differences["adapter"].stderr is None


@pytest.mark.parametrize(
    "other",
    [
        made([1.0, 0.0], chat_template=False),
        made([1.0, 0.0], limit=2),
        made([1.0, 0.0], seed=1),
        made([1.0, 0.0], harness="0.4.9"),
        made([1.0, 0.0, 1.0]),
        made([1.0, 0.0], metric="acc_norm"),
        dataclasses.replace(
            made([1.0, 0.0]),
            samples=tuple(dataclasses.replace(one, prompt="Else?") for one in made([1.0, 0.0]).samples or ()),
        ),
        dataclasses.replace(
            made([1.0, 0.0]), scores=(dataclasses.replace(made([1.0, 0.0]).scores[0], version="2"),)
        ),
        dataclasses.replace(
            made([1.0, 0.0]), scores=(dataclasses.replace(made([1.0, 0.0]).scores[0], fewshot=5),)
        ),
    ],
)  # fmt: skip
def test_what_was_asked_otherwise_does_not_compare(other: TaskScores) -> None:
    with pytest.raises(DataError, match="'adapter' was not scored on the same questions in the same way as 'base'"):
        compare_tasks({"base": made([1.0, 0.0]), "adapter": other})


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="no scores"):
        compare_tasks({})


def test_base_adapter_and_merged_in_one_table(tmp_path: Path) -> None:
    tasks, tokenizer = [local_task("sst2", sst2_file(tmp_path))], character_tokenizer()

    def scored(model: Any) -> TaskScores:
        return task_scores(model, tokenizer, tasks, keep_samples=True, show_progress=False)

    arms = {"base": scored(build("llama"))}
    model = with_adapter(build("llama"), std=0.3)
    arms["adapter"] = scored(model)
    arms["merged"] = scored(model.merge_and_unload())
    (row,) = compare_tasks(arms)
    assert row.scores["adapter"].value == row.scores["merged"].value != row.scores["base"].value
    assert row.differences["adapter"] == row.differences["merged"]
    assert row.differences["adapter"].stderr is not None
    value, change = row.scores["adapter"], row.differences["adapter"]
    assert row.texts() == {
        "task": "local_sst2",
        "metric": "acc",
        "n": "7",
        "base": f"{arms['base'].scores[0].value:.3f} ± {arms['base'].scores[0].stderr:.3f}",
        **dict.fromkeys(
            ("adapter", "merged"),
            f"{value.value:.3f} ± {value.stderr:.3f} ({change.value:+.3f} ± {change.stderr:.3f})",
        ),
    }
    assert row.to_json()["scores"]["merged"] == {"value": value.value, "stderr": value.stderr}
    assert row.to_json()["differences"]["merged"] == {"value": change.value, "stderr": change.stderr}


def test_scores_survive_json(tmp_path: Path) -> None:
    import json

    scores = task_scores(
        build("llama"), character_tokenizer(), [local_task("sst2", sst2_file(tmp_path))], limit=2, keep_samples=True,
        show_progress=False,
    )  # fmt: skip
    for one in (scores, dataclasses.replace(scores, samples=None, truncated=("local_sst2",))):
        assert TaskScores.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one
    damaged = scores.to_json()
    del damaged["scores"][0]["metric"]
    with pytest.raises(StateError, match="incomplete task scores"):
        TaskScores.from_json(damaged)
    assert scores.table()[0] == {
        "task": "local_sst2", "metric": "acc", "n": "2", "few-shot": "0",
        "value": f"{scores.scores[0].value:.3f} ± {scores.scores[0].stderr:.3f}",
    }  # fmt: skip
