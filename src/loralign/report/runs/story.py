"""The story of one run or many: what every form of the report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loralign.report.format import listing
from loralign.report.records import Sample
from loralign.report.runs.combining import Arm, combine
from loralign.report.runs.headline import headline_lines
from loralign.report.runs.reading import read_runs
from loralign.report.runs.records import Part
from loralign.report.runs.regressions import Regression, worst_regressions

STORY_FORMAT = "loralign.report"
STORY_VERSION = 1


@dataclass(frozen=True)
class Story:
    """What was gained and what was lost, and everything that shows it.

    Attributes:
        name: of the report: its arms.
        told: the result in plain words, a line for each model.
        arms: every model with its scores, categories, curves and layer maps.
        regressions: the ten worst, by falling loss.
        samples: sample answers of the runs, their kind named after the arm.
        veiled: kinds of samples whose prompts ask for something harmful.
        config, data, environment: nested facts by run.
        commands: by arm, the words of the command that made it.
        notes: what was missing, damaged or measured twice, in plain sentences.
    """

    name: str
    told: tuple[str, ...]
    arms: tuple[Arm, ...]
    regressions: tuple[Regression, ...]
    samples: tuple[Sample, ...]
    veiled: tuple[str, ...]
    config: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    commands: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The result in one piece."""
        return " ".join(self.told)

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command of a report on a single one."""
        return self.commands[0][1] if len(self.commands) == 1 else ()

    def to_json(self) -> dict[str, Any]:
        """As plain values that JSON can hold; answers stand in the regressions only."""
        arms = [asdict(replace(arm, answers=())) for arm in self.arms]
        for arm in arms:
            del arm["answers"]
        return {
            "format": STORY_FORMAT,
            "version": STORY_VERSION,
            "headline": self.headline,
            "arms": arms,
            "regressions": [asdict(one) for one in self.regressions],
            "configuration": self.config,
            "data": self.data,
            "environment": self.environment,
            "commands": [{"arm": name, "command": list(command)} for name, command in self.commands],
            "notes": list(self.notes),
        }


def load_story(places: Sequence[str | Path]) -> Story:
    """Read runs, checks, repairs and task scores, and put them together.

    Raises:
        StateError: a place is absent, holds nothing that is known, or something in it is damaged.
    """
    return make_story(read_runs(places))


def make_story(parts: Sequence[Part]) -> Story:
    """Put together what was read."""
    arms, names, notes = combine(parts)
    named = [(names[index], part) for index, part in enumerate(parts)]
    samples = [(name, sample) for name, part in named for sample in part.samples]
    return Story(
        name=listing([arm.name for arm in arms]),
        told=headline_lines(arms),
        arms=tuple(arms),
        regressions=tuple(worst_regressions(arms, samples)),
        samples=tuple(replace(one, objective=_kind(name, one)) for name, one in samples),
        veiled=tuple(_kind(name, one) for name, one in samples if one.objective == "unsafe"),
        config=_by_arm([(name, part.config) for name, part in named]),
        data=_by_arm([(name, part.data) for name, part in named]),
        environment=_by_arm([(name, part.environment) for name, part in named]),
        commands=tuple((name, part.command) for name, part in named if part.command),
        notes=tuple(dict.fromkeys([*(note for _, part in named for note in part.notes), *notes])),
    )


def _kind(arm: str, sample: Sample) -> str:
    return f"{arm}, {sample.objective}"


def _by_arm(facts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Facts under the name of their arm; those that several arms share stand once, under all their names."""
    merged: dict[str, dict[str, Any]] = {}
    for name, value in facts:
        merged[name] = {**value, **merged.get(name, {})}
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for name, value in merged.items():
        group = next((names for names, other in groups if other == value), None)
        if group is not None:
            group.append(name)
        elif value:
            groups.append(([name], value))
    return {", ".join(names): value for names, value in groups}
