"""Task scores through lm-evaluation-harness, of a model that is already in memory."""

from __future__ import annotations

import copy
import difflib
import functools
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loralign.errors import ConfigError
from loralign.evaluation.tasks.faults import explain, runs_code
from loralign.evaluation.tasks.leaving import left_as_found
from loralign.evaluation.tasks.quiet import quietened
from loralign.evaluation.tasks.recipes import ADVERSARIAL, adversarial_task, expand_recipes
from loralign.evaluation.tasks.results import read_samples, read_scores
from loralign.evaluation.tasks.scores import TaskSample, TaskScore, TaskScores

Task = str | Mapping[str, Any]
"""A task's name in the harness or a recipe's, or a configuration as :func:`~.local.local_task` gives it."""

# Resamples behind the standard errors of metrics that have no formula for it, such as F1.
_RESAMPLES = 1000


def task_scores(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    batch_size: int | str = 8,
    num_fewshot: int | None = None,
    max_new_tokens: int | None = None,
    chat_template: bool | None = None,
    seed: int = 0,
    keep_samples: bool = False,
    show_progress: bool = True,
) -> TaskScores:
    """Score a model on tasks of lm-evaluation-harness.

    Log-likelihoods are of a softmax in float32, whatever the model computes in. Equal arguments give equal scores.

    Args:
        model: of transformers, with a PEFT adapter, without, or merged; left as it was found.
        tokenizer: of the model; left as it was found.
        tasks: names of tasks, groups or tags of the harness, whose data come from the hub or its cache; recipes of
            :data:`~.recipes.RECIPES`; and local files by :func:`~.local.local_task`.
        limit: most documents of each task.
        batch_size: sequences at once; ``auto`` tries for the most that fit.
        num_fewshot: solved examples before each question, in place of the task's own number. The harness keeps to a
            task's number where that is 0.
        max_new_tokens: longest answer of tasks in which the model writes, in place of the task's own number.
        chat_template: whether prompts go through the tokenizer's chat template; by default where it has one.
        seed: of the draw of solved examples, and of sampling in tasks that sample.
        keep_samples: keep every answer, for differences between models with paired standard errors.
        show_progress: show the harness's progress bars.

    Raises:
        ConfigError: a setting is out of range, the harness is not installed or does not know a task, or a task cannot
            be run with this model or these settings.
        DataError: a task's data are not here and cannot be had.
        ModelError: the model gives no number for a choice.
    """
    specs = check_tasks(tasks, num_fewshot)
    _check(limit, batch_size, num_fewshot, max_new_tokens)
    if chat_template and tokenizer.chat_template is None:
        raise ConfigError(
            "the tokenizer has no chat template", place="chat_template", fix="leave it out, or use a chat model"
        )
    templated = tokenizer.chat_template is not None if chat_template is None else chat_template
    scores: list[TaskScore] = []
    samples: list[TaskSample] = []
    cut: list[str] = []
    with tempfile.TemporaryDirectory(prefix="loralign-tasks-") as name, left_as_found(model):
        for spec in specs:
            label = _name(spec)
            with quietened(show_progress) as log:
                try:
                    found = _run(
                        model, tokenizer, spec, Path(name),
                        limit=limit,
                        num_fewshot=num_fewshot,
                        batch_size=batch_size,
                        apply_chat_template=templated,
                        gen_kwargs=None if max_new_tokens is None else {"max_gen_toks": max_new_tokens},
                        log_samples=True,
                        seed=seed,
                    )  # fmt: skip
                except (torch.OutOfMemoryError, MemoryError):
                    # Not the task's fault.
                    raise
                except Exception as error:
                    # Data, templates, metrics and packages of many hands: as many classes as causes.
                    raise explain(error, label) from error
            if log.errors:
                raise ConfigError(log.errors[0], place=f"task {label}", fix="check what the task needs")
            # A task that was also asked for by itself, or in another group, has been scored already.
            known, asked = {one.key for one in scores}, {one.task for one in samples}
            scores += [one for one in read_scores(found) if one.key not in known]
            samples += [one for one in read_samples(found) if one.task not in asked]
            cut += [label] if log.cut else []
    return TaskScores(
        scores=tuple(scores),
        chat_template=templated,
        limit=limit,
        seed=seed,
        harness=version("lm_eval"),
        truncated=tuple(cut),
        samples=tuple(samples) if keep_samples else None,
    )


def known_tasks() -> frozenset[str]:
    """Every name that the installed harness knows, and those of AdvGLUE that are built from its GLUE.

    Raises:
        ConfigError: the harness is not installed.
    """
    check_installed()
    return frozenset(_registry().all_tasks) | frozenset(ADVERSARIAL)


def check_tasks(tasks: Sequence[Task], num_fewshot: int | None = None) -> list[Task]:
    """Check the names of tasks before anything is loaded.

    Args:
        tasks: as for :func:`task_scores`.
        num_fewshot: as there.

    Returns:
        The tasks with recipes expanded, each name once.

    Raises:
        ConfigError: there is no task, one is unknown or runs code that the model writes, two have the same name, or
            solved examples are wanted of a local file that has none.
    """
    check_installed()
    names = expand_recipes(task for task in tasks if isinstance(task, str))
    configurations = [task for task in tasks if not isinstance(task, str)]
    if not tasks:
        raise ConfigError("no task is named", place="tasks", fix="give a task's name, or sst2=PATH")
    for name in names:
        if name not in (known := known_tasks()):
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "lm-eval ls tasks lists what there is"
            raise ConfigError(f"the harness has no task {name!r}", place="tasks", fix=fix)
        entry = _registry().task_index.get(name)
        if entry is not None and (entry.cfg or {}).get("unsafe_code"):
            # Some of these fetch a program from the hub as soon as they are loaded.
            raise runs_code(name)
    labels = [_name(one) for one in configurations]
    for label, one in zip(labels, configurations, strict=True):
        if labels.count(label) > 1:
            raise ConfigError(f"the task {label!r} is named twice", place="tasks", fix="name it once")
        if num_fewshot and not one.get("fewshot_split"):
            raise ConfigError(
                f"num_fewshot is {num_fewshot}, but there is no file to take solved examples from",
                place=f"task {label}",
                fix="name one as examples, so that no question is among them",
            )
    return [*configurations, *names]


def check_installed() -> None:
    """Make sure that the harness is there.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "task scores need lm-evaluation-harness, which is not installed",
            place="tasks",
            fix="pip install loralign[tasks]",
        )


def _run(
    model: Any, tokenizer: Any, spec: Task, directory: Path, *, batch_size: int | str, seed: int, **options: Any
) -> Any:
    """The harness's own result for one task, group or tag."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if isinstance(spec, str):
        manager = _registry()
        task: Any = adversarial_task(spec, manager.task_index, directory) if spec in ADVERSARIAL else spec
    else:
        manager = TaskManager(include_defaults=False)
        # A cache of this call's own: nothing stays behind, and a file that changed is never read from an older copy.
        data = {**spec.get("dataset_kwargs", {}), "cache_dir": str(directory), "keep_in_memory": True}
        task = {**copy.deepcopy(dict(spec)), "dataset_kwargs": data}
    # The harness may give the tokenizer a padding token.
    network = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, softmax_dtype="float32")
    return simple_evaluate(
        network,
        tasks=[task],
        task_manager=manager,
        bootstrap_iters=_RESAMPLES,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        **options,
    )


@functools.cache
def _registry() -> Any:
    """The harness's index of its tasks, which takes seconds to read."""
    with quietened(show_progress=False):
        from lm_eval.tasks import TaskManager

        return TaskManager()


def _name(spec: Task) -> str:
    return spec if isinstance(spec, str) else str(spec["task"])


def _check(limit: int | None, batch_size: int | str, num_fewshot: int | None, max_new_tokens: int | None) -> None:
    for option, value, least in (
        ("limit", limit, 1),
        ("num_fewshot", num_fewshot, 0),
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", None if isinstance(batch_size, str) else batch_size, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{option} is {value}", place=option, fix=f"give a number of at least {least}")
    if isinstance(batch_size, str) and batch_size != "auto":
        raise ConfigError(f"batch_size is {batch_size!r}", place="batch_size", fix="give a number, or auto")
