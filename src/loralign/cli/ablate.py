"""``loralign ablate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from loralign.cli.experiment import CONTEXT, run_experiment
from loralign.errors import ConfigError

_KINDS = {"align": "align", "guard": "adapt"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "ablate",
        context_settings=CONTEXT,
        help="Run the arms of a method side by side: loralign ablate align, loralign ablate guard.",
    )(ablate)


@dataclass
class AblateArguments:
    """Run the arms that a method is made of, and its peers, with every seed, and compare them.

    ``ablate align``: uniform, Norm, Geo, match, each without and with refinement, and TorchJD's weightings. ``ablate
    guard``: the ladder from the task loss to the full method, each collision term removed alone, projections.
    """

    arms: list[str] = field(default_factory=list, metadata={"help": "Names of the arms to run; all by default."})


def ablate(context: typer.Context) -> None:
    """Choose the method by the first word, run its arms, print the table."""
    words = list(context.args)
    kind = words.pop(0) if words and words[0] in _KINDS else None
    if kind is None:
        if {"--help", "-h"} & set(words):
            kind = "guard"
        else:
            raise ConfigError("the method is missing", place="ablate", fix="write ablate align or ablate guard")
    command: Any = _KINDS[kind]

    def act(recipe: Any, options: Any) -> Any:
        from loralign.experiments.ablate import ablate as run

        return run(command, recipe.base, options, recipe.own.arms)

    run_experiment(f"ablate {kind}", AblateArguments, command, words, act)
