"""``loralign sweep``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import typer

from loralign.cli.experiment import CONTEXT, run_experiment
from loralign.errors import ConfigError

_COMMANDS = ("adapt", "align")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "sweep",
        context_settings=CONTEXT,
        help="Search recipe fields for alignment kept and task learned: loralign sweep [adapt|align].",
    )(sweep)


@dataclass
class SweepArguments:
    """Search recipe fields for two measures at once, with every seed, and find the Pareto front.

    By default refusals kept and task gain of ``loralign adapt``; after ``sweep align``, drift from the reference and
    preference accuracy. A stated budget of drift, or a share of refusals to keep, makes it recommend a point.
    """

    space: list[str] = field(
        default_factory=list,
        metadata={"help": "FIELD=a,b,c or FIELD=low:high[:log][:POINTS] each; POINTS is for a grid alone."},
    )
    sampler: Literal["grid", "tpe", "nsga2"] = field(
        default="grid", metadata={"help": "grid: every combination; tpe, nsga2: proposed from what was found."}
    )
    trials: int = field(default=20, metadata={"help": "Trials in all of tpe and nsga2; more, and the command goes on."})
    population: int = field(default=8, metadata={"help": "Trials of a generation of nsga2."})
    sampler_seed: int = field(default=0, metadata={"help": "Of tpe and nsga2."})
    trade: list[str] = field(
        default_factory=list,
        metadata={"help": "The two measures, what is kept and what is gained, such as drift 'task:local_sst2 acc'."},
    )
    budget: float | None = field(
        default=None, metadata={"help": "Recommend the best within this drift, in nats per token."}
    )
    keep: float | None = field(
        default=None, metadata={"help": "Recommend the best that keeps this share of the start's refusals."}
    )
    reference: list[float] = field(
        default_factory=list, metadata={"help": "Reference point of the hypervolume, in the order of the measures."}
    )

    def __post_init__(self) -> None:
        for name in ("trade", "reference"):
            values = getattr(self, name)
            if values and len(values) != 2:
                told = " ".join(map(str, values))
                raise ConfigError(f"{told} are {len(values)}, not 2", place=f"--{name}", fix="give one a measure")


def sweep(context: typer.Context) -> None:
    """Choose the command by the first word, search, print the front."""
    words = list(context.args)
    command: Any = words.pop(0) if words and words[0] in _COMMANDS else _COMMANDS[0]

    def act(recipe: Any, options: Any) -> Any:
        from loralign.experiments.search_plan import SearchPlan
        from loralign.experiments.space_syntax import parse_space
        from loralign.experiments.sweep import TRADES, Wanted
        from loralign.experiments.sweep import sweep as run

        own: SweepArguments = recipe.own
        first, second = own.trade or TRADES[command]
        plan = SearchPlan(
            space=parse_space(command, own.space),
            measures=(first, second),
            sampler=own.sampler,
            trials=own.trials,
            population=own.population,
            seed=own.sampler_seed,
        )
        reference = (own.reference[0], own.reference[1]) if own.reference else None
        return run(command, recipe.base, options, plan, Wanted(own.budget, own.keep, reference))

    run_experiment(f"sweep {command}", SweepArguments, command, words, act, grows=("trials",))
