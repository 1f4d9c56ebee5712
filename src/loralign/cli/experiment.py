"""What the commands of experiments share: their words, their workers, their progress, what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

from loralign.cli.show import console, field_lines, print_sentences, print_table
from loralign.errors import ConfigError

T = TypeVar("T")

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def run_experiment(
    name: str,
    own: type[T],
    command: Any,
    arguments: Sequence[str],
    act: Callable[[Any, Any], Any],
    grows: Sequence[str] = (),
) -> None:
    """Parse, run, write and print an experiment.

    Args:
        name: as typed after ``loralign``.
        own: dataclass of the experiment's own settings.
        command: that its cells run, ``align`` or ``adapt``.
        arguments: the words after the name.
        act: from the parsed recipe and the options to the finding.
        grows: own settings that only say how far it goes on, so that results of more take the place of those of less.
    """
    words = [word for word in arguments if word != "--json"]
    if {"--help", "-h"} & set(words):
        typer.echo(_help(name, own, command, whole="--all" in words))
        return
    try:
        from loralign.experiments.arguments import parse_experiment
        from loralign.experiments.cell import known_settings
        from loralign.experiments.finding import PAGE, RESULTS, TABLE
        from loralign.experiments.questions import question, results_directory
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed", place=name, fix="pip install 'loralign[experiments]'"
        ) from error

    recipe = parse_experiment(name, own, command, words)
    helpers = _Helpers(Path(recipe.experiment.output))

    def tell(progress: Any) -> None:
        _tell(progress)
        helpers.tell_ended()

    options = recipe.experiment.options(tell)
    # Before a subspace is estimated and before other workers begin.
    options.measures.check()
    helpers.start(recipe.experiment.workers, name, words)
    try:
        finding = act(recipe, options).told(recipe.words, recipe.base)
    except BaseException:
        helpers.terminate()
        raise
    helpers.wait()
    usual = name.replace(" ", "-")
    decisive = {key: value for key, value in vars(recipe.own).items() if key not in grows}
    asked = question(known_settings(decisive), options.seeds, known_settings(recipe.base), recipe.experiment.accelerate)
    directory = results_directory(options.output, usual, asked)
    finding.write(directory)
    if directory.name != usual:
        others = f"{directory.with_name(usual)} holds what was found with other arms, seeds or settings"
        typer.echo(f"{others}, and is left as it is; these results are in {directory}", err=True)
    if len(words) < len(arguments):
        files = {"page": PAGE, "table": TABLE, "results": RESULTS}
        places = {key: str(directory / file) for key, file in files.items()}
        typer.echo(json.dumps({"headline": finding.page.headline, **places}))
        return
    console.print()
    console.print(finding.page.headline, markup=False)
    console.print()
    for title, table in finding.page.tables:
        print_table(title, table.headings, table.rows)
    print_sentences(finding.page.notes)
    console.print()
    console.print(f"page     {directory / PAGE}", markup=False, soft_wrap=True)
    console.print(f"numbers  {directory / RESULTS}", markup=False, soft_wrap=True)


def _tell(progress: Any) -> None:
    from loralign.report.format import duration

    left = progress.remaining_seconds
    told = "" if left is None or not left else f", about {duration(left)} left"
    failed = f", {progress.failed} failed" if progress.failed else ""
    typer.echo(f"[{progress.finished}/{progress.total}] {progress.unit} finished{failed}{told}", err=True)


class _Helpers:
    """Further processes that do the same, each with a log.

    Args:
        output: directory of the experiment, where the logs are.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, workers: int, name: str, words: Sequence[str]) -> None:
        """Start all but this process, which is the first; each computes with its share of the cores, this one too."""
        if workers < 2:
            return
        import torch

        share = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(share)
        command = [sys.executable, "-m", "loralign", *name.split(), *words, "--workers", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(share)}
        self._output.mkdir(parents=True, exist_ok=True)
        for number in range(1, workers):
            with self._log(number).open("ab") as log:
                self._processes[number] = subprocess.Popen(  # noqa: S603
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )

    def tell_ended(self) -> None:
        """Say which have ended with a fault, once of each; what they leave undone is done by the others."""
        for number, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            del self._processes[number]
            if process.returncode:
                told = f"worker {number} ended with status {process.returncode}, see {self._log(number)}"
                typer.echo(f"{told}; the others do its work", err=True)

    def wait(self) -> None:
        """Until all have ended."""
        for process in self._processes.values():
            process.wait()
        self.tell_ended()

    def terminate(self) -> None:
        """End them now; one that has launched a cell ends that first."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()

    def _log(self, number: int) -> Path:
        return self._output / f"worker-{number}.log"


def _help(name: str, own: type[Any], command: Any, *, whole: bool) -> str:
    from loralign.experiments.arguments import ExperimentArguments, experiment_settings

    if whole:
        return str(experiment_settings(name, own, command).parser().format_help())
    return "\n".join(
        [
            f"Usage: loralign {name} [MODEL] [--config recipe.yaml] [--FIELD VALUE ...] [--json]",
            "",
            " ".join((own.__doc__ or "").split()),
            "",
            *field_lines(own),
            "",
            "Experiment:",
            *field_lines(ExperimentArguments),
            "",
            f"Recipe: every field of loralign {command}; --help --all lists them.",
        ]
    )
