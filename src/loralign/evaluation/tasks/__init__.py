"""Scores on tasks through lm-evaluation-harness: any of its tasks by name, and SST-2, GSM8K and MMLU on local files.

:func:`local_task` or a name → :func:`task_scores` → :class:`TaskScores` → :func:`compare_tasks`. The harness itself is
an optional dependency, ``pip install loralign[tasks]``, and is imported when it is first needed.
"""

from __future__ import annotations

from loralign.evaluation.tasks.comparison import TaskRow, compare_tasks
from loralign.evaluation.tasks.harness import known_tasks, task_scores
from loralign.evaluation.tasks.local import LOCAL_TASKS, local_task
from loralign.evaluation.tasks.recipes import RECIPES
from loralign.evaluation.tasks.scores import TaskSample, TaskScore, TaskScores

__all__ = [
    "LOCAL_TASKS",
    "RECIPES",
    "TaskRow",
    "TaskSample",
    "TaskScore",
    "TaskScores",
    "compare_tasks",
    "known_tasks",
    "local_task",
    "task_scores",
]
