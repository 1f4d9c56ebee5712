"""``loralign demo``: the whole story on bundled data, stage by stage."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from loralign.data import load_alignment_data
from loralign.data.driftcheck import build_driftcheck
from loralign.data.preferences import load_preferences
from loralign.errors import ConfigError, OutputError
from loralign.files import atomic_directory, json_lines, write_json, write_text
from loralign.report.runs import Story, load_story, render_story
from loralign.runs.adapt import run_adaptation
from loralign.runs.adapt_recipe import parse_adapt_recipe
from loralign.runs.align import run_alignment
from loralign.runs.driftcheck import SCORES, check_drift
from loralign.runs.driftcheck_options import CheckMode, CheckOptions, CheckSubject
from loralign.runs.output import ADAPTER
from loralign.runs.recipe import parse_recipe
from loralign.runs.repair import RepairOptions, repair_adapter
from loralign.runs.subspace import estimate_subspace
from loralign.training import last_whole_checkpoint

DEMO, REPORT = "demo.json", "report.html"
_LESSON, _TAUGHT, _PAIRS = "lesson", "taught", "pairs.jsonl"
_ARMS = ("aligned", "plain", "guarded", "repaired")
_ALIGNED, _PLAIN, _GUARDED, _REPAIRED = _ARMS
_Split = Literal["train", "validation"]
_MODES: tuple[CheckMode, ...] = ("generate", "score")
_PAIRS_PER_OBJECTIVE = 16
_ANSWER_TOKENS = 32
_FISHER_SAMPLES, _PROBE_SAMPLES, _TASK_SAMPLES = 64, 32, 40


@dataclass(frozen=True)
class DemoOptions:
    """How much of everything.

    Attributes:
        model: to align; by default SmolLM2-135M-Instruct.
        weighting: of the objectives, as for ``loralign align``.
        teach_steps: optimiser steps of the supervised lesson that comes before the alignment.
        align_steps: optimiser steps of the alignment.
        adapt_steps: optimiser steps of each adaptation.
        scored_prompts: prompts of driftcheck's score mode.
        answered_prompts: prompts of its generate mode.
        max_length: of samples, in tokens.
        seed: of everything.

    Raises:
        ConfigError: a number is not positive.
    """

    model: str | None = None
    weighting: str = "geo"
    teach_steps: int = 24
    align_steps: int = 6
    adapt_steps: int = 16
    scored_prompts: int = 64
    answered_prompts: int = 100
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("teach_steps", "align_steps", "adapt_steps", "scored_prompts", "answered_prompts", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", place=name, fix="use at least 1")


@dataclass(frozen=True)
class Stage:
    """One step of the story.

    Attributes:
        title: what it does.
        share: of the whole's time, for the estimate of what remains.
        result: exists as soon as the stage is finished.
        act: does it; goes on where an interrupted one stopped.
    """

    title: str
    share: float
    result: Path
    act: Callable[[], object]


def run_demo(
    output: Path, options: DemoOptions | None = None, *, tell: Callable[[str], None] = print
) -> tuple[Story, Path]:
    """Align, adapt twice, repair, measure, report; stages that an earlier call finished are not done again.

    Args:
        output: a directory for all runs, new or left by an earlier call with the same options.
        options: how much of everything.
        tell: shows a line about each stage.

    Returns:
        What the report says, and the report.

    Raises:
        OutputError: the directory holds something else, or a demo with other options.
        LoralignError: any fault of a stage.
    """
    options = options or DemoOptions()
    _claim(output, options)
    stages = demo_stages(output, options)
    began, worked = time.monotonic(), 0.0
    for number, stage in enumerate(stages, 1):
        if stage.result.exists():
            tell(f"[{number}/{len(stages)}] {stage.title}: done before")
            continue
        left = sum(later.share for later in stages[number - 1 :] if not later.result.exists())
        tell(f"[{number}/{len(stages)}] {stage.title}{_remaining(time.monotonic() - began, worked, left)}")
        stage.act()
        worked += stage.share
    report = output / REPORT
    story = load_story(_reported(output))
    render_story(story, report)
    return story, report


def demo_stages(output: Path, options: DemoOptions) -> list[Stage]:
    """The stages in their order; shares as measured with SmolLM2-135M on two cores."""
    lesson, fisher, prompts = output / _LESSON, output / "fisher", output / "prompts"
    aligned = str(output / _ALIGNED / ADAPTER)
    return [
        Stage("writing down what is to be taught", 0, lesson, lambda: _write_lesson(lesson)),
        Stage(
            "teaching refusals and answers",
            20,
            output / _TAUGHT / REPORT,
            lambda: _teach(output / _TAUGHT, lesson, options),
        ),
        Stage(
            f"aligning for three objectives with GA-LoRA ({options.weighting})",
            15,
            output / _ALIGNED / REPORT,
            lambda: _align(output / _ALIGNED, options),
        ),
        Stage(
            "finding the directions that carry the alignment",
            3,
            fisher,
            lambda: estimate_subspace(
                aligned, fisher, samples=_FISHER_SAMPLES, max_length=options.max_length, seed=options.seed
            ),
        ),
        Stage(
            "adapting to a task with plain LoRA",
            19,
            output / _PLAIN / REPORT,
            lambda: _adapt(output / _PLAIN, aligned, "none", options),
        ),
        Stage(
            "adapting to the same task, guarded",
            23,
            output / _GUARDED / REPORT,
            lambda: _adapt(output / _GUARDED, aligned, str(fisher), options),
        ),
        Stage(
            "repairing the plain adapter",
            5,
            output / _REPAIRED,
            lambda: repair_adapter(
                str(output / _PLAIN / ADAPTER),
                output / _REPAIRED,
                RepairOptions(strength=1.0, seed=options.seed),
                subspace=str(fisher),
                task_data=["builtin"],
                task_samples=_TASK_SAMPLES,
                probe_samples=_PROBE_SAMPLES,
                max_length=options.max_length,
            ),
        ),
        Stage(
            "building prompts, safe and unsafe",
            1,
            prompts,
            lambda: build_driftcheck(["builtin"], prompts, safe=1000, unsafe=1000, seed=options.seed),
        ),
        *(
            Stage(
                f"checking {arm}: {'answers' if mode == 'generate' else 'openings'}",
                4 if mode == "generate" else 2,
                _check(output, arm, mode) / SCORES,
                partial(_measure, output, arm, mode, options),
            )
            for mode in _MODES
            for arm in _ARMS
        ),
    ]


def _write_lesson(target: Path) -> None:
    """Refusals, answers to what only sounds unsafe, helpful answers: a file for either split of the bundled data.

    Beside them the pairs that the alignment is scored on, fewer than are bundled.
    """
    with atomic_directory(target) as directory:
        write_text(directory / _PAIRS, _pairs())
        for split in get_args(_Split):
            write_text(directory / f"{split}.jsonl", _lesson(split))


def _lesson(split: _Split) -> str:
    kept = load_alignment_data("builtin", split=split)
    pairs = load_preferences("builtin", split=split).dataset
    samples = [{"prompt": row["prompt"], "completion": row["completion"]} for row in kept]
    samples += [
        {"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs if row["objective"] == "helpful"
    ]
    return json_lines(samples)


def _pairs() -> str:
    """The first validation pairs of every objective."""
    seen: Counter[str] = Counter()
    chosen = []
    for row in load_preferences("builtin", split="validation").dataset:
        seen[row["objective"]] += 1
        if seen[row["objective"]] <= _PAIRS_PER_OBJECTIVE:
            chosen.append(row)
    return json_lines(chosen)


def _teach(directory: Path, lesson: Path, options: DemoOptions) -> None:
    # Preferences alone teach a model that never refused to rank refusals, not to write them.
    flags = {
        "data": lesson / "train.jsonl",
        "validation_data": lesson / "validation.jsonl",
        "guard": "none",
        "max_steps": options.teach_steps,
        "learning_rate": 8e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "per_device_train_batch_size": 8,
        "max_length": options.max_length,
        "validation_samples": 16,
        "probe_every": 0,
        "judged_prompts": 0,
        "samples": 0,
        "save_steps": 10,
        "seed": options.seed,
    }
    run_adaptation(parse_adapt_recipe(_flags(directory, options.model, flags)))


def _align(directory: Path, options: DemoOptions) -> None:
    flags = {
        "adapter": directory.with_name(_TAUGHT) / ADAPTER,
        "validation_data": directory.with_name(_LESSON) / _PAIRS,
        "max_steps": options.align_steps,
        "weighting": options.weighting,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 1,
        "max_length": options.max_length,
        "length_policy": "truncate",
        "measure_every": 3,
        "save_steps": 10,
        "seed": options.seed,
    }
    run_alignment(parse_recipe(_flags(directory, options.model, flags)))


def _adapt(directory: Path, aligned: str, guard: str, options: DemoOptions) -> None:
    flags = {
        "data": "builtin",
        # The same as repair's, so that their losses compare.
        "validation_data": "builtin",
        "validation_samples": _TASK_SAMPLES,
        "probe_samples": _PROBE_SAMPLES,
        "fisher_samples": _FISHER_SAMPLES,
        "guard": guard,
        "reestimate_every": 0.5,
        "max_steps": options.adapt_steps,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "max_length": options.max_length,
        "judged_prompts": 0,
        "samples": 2,
        "save_steps": 10,
        "seed": options.seed,
    }
    run_adaptation(parse_adapt_recipe(_flags(directory, aligned, flags)))


def _flags(directory: Path, model: str | None, options: dict[str, Any]) -> list[str]:
    """A run's command line: from its last whole checkpoint, or from the beginning."""
    begun = "--resume" if last_whole_checkpoint(directory) is not None else "--overwrite"
    words = ["--output_dir", str(directory), begun, "true"]
    words += [] if model is None else ["--model", model]
    return words + [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _measure(output: Path, arm: str, mode: CheckMode, options: DemoOptions) -> None:
    adapter = output / _REPAIRED if arm == _REPAIRED else output / arm / ADAPTER
    start, plain = (_check(output, other, mode) for other in (_ALIGNED, _PLAIN))
    check_drift(
        CheckSubject(str(adapter)),
        output / "prompts",
        _check(output, arm, mode),
        CheckOptions(
            mode=mode,
            max_new_tokens=_ANSWER_TOKENS,
            prompts=options.answered_prompts if mode == "generate" else options.scored_prompts,
            seed=options.seed,
        ),
        baseline=None if arm == _ALIGNED else str(start),
        against=plain if arm in (_GUARDED, _REPAIRED) else None,
    )


def _check(output: Path, arm: str, mode: str) -> Path:
    return output / f"{'answers' if mode == 'generate' else 'openings'}-{arm}"


def _reported(output: Path) -> Sequence[str]:
    names = [*_ARMS, *(_check(output, arm, mode).name for mode in _MODES for arm in _ARMS)]
    return [str(output / name) for name in names]


def _claim(output: Path, options: DemoOptions) -> None:
    """Take a new directory, or one that a demo with these options was begun in."""
    record = output / DEMO
    wanted = {"version": 1, "kind": "demo", "options": asdict(options)}
    if not record.exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise OutputError("holds something else", place=str(output), fix="choose another place with --output")
        output.mkdir(parents=True, exist_ok=True)
        write_json(record, wanted)
        return
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be read: {error}", place=str(record), fix="choose another --output") from error
    if found != wanted:
        raise OutputError(
            "holds a demo with other options", place=str(output), fix="repeat those, or choose another --output"
        )


def _remaining(elapsed: float, worked: float, left: float) -> str:
    if not worked:
        return ""
    minutes = elapsed * left / worked / 60
    return f" (about {minutes:.0f} min left)" if minutes >= 1 else " (less than a minute left)"
