"""SST-2, GSM8K and MMLU on local files, as tasks in the harness's own form.

Each is a YAML file in ``local/`` that says everything but where the data are. Prompts are the rows' own questions, as
an adapter trained on such rows has seen them, so that values do not compare with those of the harness's tasks of the
same name on the hub.
"""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from loralign.errors import ConfigError, DataError
from loralign.evaluation.tasks.local_rows import read_rows

LOCAL_TASKS = ("gsm8k", "mmlu", "sst2")
"""Names that :func:`local_task` knows."""


def local_task(name: str, path: str | Path, *, examples: str | Path | None = None) -> dict[str, Any]:
    """A task of the harness whose documents are the rows of a local file.

    - ``sst2``: ``{"messages": [user, assistant]}``, the answer ``positive`` or ``negative``; the log-likelihoods of
      both words are compared.
    - ``gsm8k``: the same with worked answers that end with ``#### number``; the model writes, and its number is
      compared: the one it marks in that way (``marked``) and the last one it writes (``last-number``).
    - ``mmlu``: ``{"subject", "question", "choices", "answer"}`` with the index of the right choice; the log-likelihoods
      of the letters are compared.

    Args:
        name: of :data:`LOCAL_TASKS`.
        path: the documents, a file of JSON lines.
        examples: a file of the same form to take solved examples from, for MMLU those of the same subject: as many as
            the task has by default (4 for SST-2, else 5), or fewer where the file has fewer. Without one, none.

    Returns:
        The task's configuration, for :func:`~loralign.evaluation.tasks.harness.task_scores` or the harness itself.

    Raises:
        ConfigError: there is no such task.
        DataError: a file is not there, a row is not what the task needs, or a subject has no solved example.
    """
    if name not in LOCAL_TASKS:
        raise ConfigError(f"no task on local files named {name!r}", place="tasks", fix=f"use {', '.join(LOCAL_TASKS)}")
    text = files("loralign.evaluation.tasks").joinpath("local", f"{name}.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    rows = read_rows(name, path)
    data_files = {"test": _absolute(path)}
    if examples is None:
        config["num_fewshot"] = 0
    else:
        solved = read_rows(name, examples)
        data_files["examples"] = _absolute(examples)
        config["fewshot_split"] = "examples"
        fewest = len(solved)
        if name == "mmlu":
            fewest = _fewest_of_a_subject(rows, solved, str(examples))
            config["class"] = _subject_task()
        config["num_fewshot"] = min(config["num_fewshot"], fewest)
    config["dataset_kwargs"] = {"data_files": data_files}
    return config


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())


def _fewest_of_a_subject(rows: list[dict[str, Any]], solved: list[dict[str, Any]], place: str) -> int:
    """How many solved examples the subject with the fewest has."""
    have = Counter(row["subject"] for row in solved)
    fewest, subject = min((have[row["subject"]], row["subject"]) for row in rows)
    if fewest == 0:
        raise DataError(
            f"the subject {subject!r} has no solved example", place=place, fix="add some, or leave the examples out"
        )
    return fewest


def _subject_task() -> type:
    # The module needs the harness, which is an optional dependency.
    from loralign.evaluation.tasks.subjects import SubjectTask

    return SubjectTask
