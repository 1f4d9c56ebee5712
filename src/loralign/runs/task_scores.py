"""``loralign tasks``: scores of a model and its adapter on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loralign.errors import ConfigError, OutputError, StateError
from loralign.evaluation.tasks.comparison import TaskRow, compare_tasks
from loralign.evaluation.tasks.harness import Task, check_tasks, task_scores
from loralign.evaluation.tasks.local import local_task
from loralign.evaluation.tasks.scores import TaskScores, metric_name
from loralign.files import json_lines, write_json, write_text
from loralign.models import LoadedModel, is_adapter, load_adapter, load_start
from loralign.models.dtype import DtypeName
from loralign.runs.environment import describe_environment, onto_device
from loralign.runs.opening import open_base

_FORMAT = "loralign.tasks"
_VERSION = 1


@dataclass(frozen=True)
class TaskRun:
    """What :func:`score_tasks` found.

    Args:
        arms: scores by model: ``base``, and with an adapter ``adapter`` and perhaps ``merged``.
        rows: all of them side by side, with paired differences to the first.
    """

    arms: dict[str, TaskScores]
    rows: list[TaskRow]


def score_tasks(
    model: str,
    adapter: str | Path | None,
    tasks: Sequence[str],
    output: str | Path,
    *,
    examples: Sequence[str] = (),
    base: bool = True,
    merged: bool = False,
    dtype: DtypeName = "auto",
    limit: int | None = None,
    batch_size: int | str = 8,
    num_fewshot: int | None = None,
    max_new_tokens: int | None = None,
    chat_template: bool | None = None,
    seed: int = 0,
    samples: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
) -> TaskRun:
    """Score a model, the model with an adapter, and the two merged, and write what was found.

    Args:
        model: as for :func:`loralign.models.load_model`; or an adapter's directory, which is scored against the base
            that it names, or, where ``adapter`` is given as well, merged into that base to start from.
        adapter: a PEFT LoRA directory, or None.
        tasks: names of the harness or of recipes, and ``sst2=PATH``, ``gsm8k=PATH``, ``mmlu=PATH``.
        output: the JSON file to write: format ``loralign.tasks``, model, start, adapter, settings, ``arms`` (scores by
            model), ``comparison`` (a row for every metric) and the environment.
        examples: ``NAME=PATH`` of files with solved examples for tasks on local files.
        base: score the model without the adapter as well, which is what differences are to; leaving it out needs an
            adapter.
        merged: score the merged model as well; needs an adapter.
        dtype: of the weights.
        limit: most documents of each task.
        batch_size: sequences at once, or ``auto``.
        num_fewshot: solved examples, in place of the task's own number.
        max_new_tokens: longest answer, in place of the task's own.
        chat_template: whether to apply it; by default where there is one.
        seed: of the draw of examples and of sampling.
        samples: also write every answer, a JSON object a line, beside ``output`` with the suffix ``.samples.jsonl``.
        overwrite: replace ``output`` where it exists.
        show_progress: show progress bars.

    Raises:
        LoralignError: any fault of the settings, the data, the model or the adapter; nothing is written then.
    """
    output = Path(output)
    _check_output(output, overwrite)
    if adapter is None and is_adapter(model):
        adapter, start = model, None
    else:
        start = model
    if merged and adapter is None:
        raise ConfigError("merged was asked for without an adapter", place="merged", fix="name the adapter")
    if not base and adapter is None:
        raise ConfigError("without the base and an adapter there is no model", place="base", fix="name the adapter")
    specs = task_specs(tasks, examples, num_fewshot)
    loaded = _open(start, adapter, dtype)
    settings: dict[str, Any] = {
        "limit": limit,
        "batch_size": batch_size,
        "num_fewshot": num_fewshot,
        "max_new_tokens": max_new_tokens,
        "chat_template": chat_template,
        "seed": seed,
    }
    arms = {
        arm: task_scores(
            network, loaded.tokenizer, specs, keep_samples=True, show_progress=show_progress, **settings
        )
        for arm, network in _networks(loaded, adapter, base, merged)
    }  # fmt: skip
    rows = compare_tasks(arms)
    if samples:
        write_text(samples_path(output), _lines(arms))
    else:
        # Those of the scores that are replaced would be read as these ones'.
        samples_path(output).unlink(missing_ok=True)
    write_json(
        output,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "model": loaded.source.name,
            "start": loaded.source.name if start is None else str(start),
            "adapter": None if adapter is None else str(adapter),
            "settings": {"tasks": list(tasks), "examples": list(examples), "dtype": dtype, **settings},
            "arms": {arm: _without_samples(scores) for arm, scores in arms.items()},
            "comparison": [row.to_json() for row in rows],
            "environment": describe_environment(loaded.model),
        },
    )
    return TaskRun(arms, rows)


def samples_path(output: Path) -> Path:
    """Where the answers of a run go: ``tasks.json`` has them in ``tasks.samples.jsonl``."""
    return output.with_suffix(".samples.jsonl")


def read_task_samples(output: Path, arm: str = "adapter") -> dict[str, list[float]]:
    """The values of every document of a run that kept its answers, by task and metric, such as ``local_sst2 acc``.

    Args:
        output: the JSON file of the run.
        arm: of the run.

    Raises:
        StateError: the answers are missing or damaged.
    """
    file = samples_path(output)
    found: dict[str, list[float]] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            if one["arm"] == arm:
                for metric, value in one["values"].items():
                    found.setdefault(f"{one['task']} {metric_name(metric, one['filter'])}", []).append(float(value))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateError(f"cannot be read: {error}", place=str(file), fix="score the tasks again") from error
    return found


def read_lower_is_better(output: Path, arm: str = "adapter") -> set[str]:
    """Of a run's tasks and metrics, named as in :func:`read_task_samples`, those of which less is better.

    Args:
        output: the JSON file of the run.
        arm: of the run.

    Raises:
        StateError: it is missing or damaged.
    """
    try:
        scores = json.loads(output.read_text(encoding="utf-8"))["arms"][arm]["scores"]
        return {
            f"{one['task']} {metric_name(one['metric'], one['filter'])}"
            for one in scores
            if one["higher_is_better"] is False
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StateError(f"cannot be read: {error}", place=str(output), fix="score the tasks again") from error


def task_specs(tasks: Sequence[str], examples: Sequence[str] = (), num_fewshot: int | None = None) -> list[Task]:
    """The harness's specifications of tasks, checked as far as they can be without a model or the hub.

    Args:
        tasks: written as ``NAME`` or ``NAME=PATH``.
        examples: ``NAME=PATH`` of files with solved examples for tasks on local files.
        num_fewshot: solved examples, in place of the task's own number.

    Raises:
        ConfigError: as :func:`~loralign.evaluation.tasks.harness.check_tasks`; examples for no task.
        DataError: a file cannot be read, or is not what its task needs.
    """
    solved = {}
    for text in examples:
        name, equals, path = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not NAME=PATH", place="examples", fix="write it as sst2=PATH")
        solved[name] = path
    specs: list[Task] = []
    for text in tasks:
        name, equals, path = text.partition("=")
        specs.append(local_task(name, path, examples=solved.pop(name, None)) if equals else text)
    if solved:
        raise ConfigError(
            f"examples for {', '.join(solved)}, which is no task on a local file here",
            place="examples",
            fix="name the task as NAME=PATH too",
        )
    return check_tasks(specs, num_fewshot)


def _open(start: str | None, adapter: str | Path | None, dtype: DtypeName) -> LoadedModel:
    if adapter is not None and not is_adapter(start):
        return onto_device(open_base(adapter, start, dtype))
    return onto_device(load_start(start, dtype=dtype))


def _networks(loaded: LoadedModel, adapter: str | Path | None, base: bool, merged: bool) -> Iterator[tuple[str, Any]]:
    """The models to score, one after the other in the same memory."""
    if base:
        yield "base", loaded.model
    if adapter is None:
        return
    tuned, _, _ = load_adapter(adapter, loaded)
    yield "adapter", tuned
    if merged:
        with warnings.catch_warnings():
            # PEFT leaves the adapter's configuration on the model that it unloads and warns of it.
            warnings.filterwarnings("ignore", message=".*peft_config.*")
            network = tuned.merge_and_unload()
        yield "merged", network


def _lines(arms: dict[str, TaskScores]) -> str:
    """Every answer of every model as JSON lines."""
    return json_lines({"arm": arm, **asdict(one)} for arm, scores in arms.items() for one in scores.samples or ())


def _without_samples(scores: TaskScores) -> dict[str, Any]:
    value = scores.to_json()
    value.pop("samples")
    return value


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise OutputError("is a directory", place=str(output), fix="name a file, such as tasks.json")
    if output.exists() and not overwrite:
        raise OutputError("exists", place=str(output), fix="pass --overwrite, or choose another")
