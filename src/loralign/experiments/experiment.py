"""An experiment: arms × seeds of one base recipe, worked through cell by cell, and what they found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.trial import Trial

from loralign.errors import ConfigError
from loralign.experiments.cell import Cell, CellSettings, Command, make_cell
from loralign.experiments.contents import identity_digest
from loralign.experiments.grid import Progress, Work
from loralign.experiments.measuring import Measures
from loralign.experiments.outcomes import outcome
from loralign.experiments.running import Launcher, run_cell
from loralign.experiments.seed_means import Samples, Units
from loralign.experiments.storage import Storage
from loralign.experiments.store import CellRecord, CellStore
from loralign.models import is_adapter, merge_adapter
from loralign.models.adapter_files import inspect_adapter

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Arm:
    """One way of doing it.

    Attributes:
        name: in tables.
        overrides: recipe fields that differ from the base recipe.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentOptions:
    """What all experiments have in common.

    Attributes:
        output: directory of cells and results; several experiments may share one, and then share cells.
        seeds: every arm is run with each.
        storage: URL of Optuna's database; SQLite in ``output`` by default.
        launcher: how cells are run.
        measures: of every adapter, beside its run's own scores.
        tell: is called before and after every cell.
    """

    output: Path
    seeds: tuple[int, ...] = (0,)
    storage: str | None = None
    launcher: Launcher = field(default_factory=Launcher)
    measures: Measures = field(default_factory=Measures)
    tell: Tell = field(default=lambda progress: None)

    def cell(self, command: Command, base: CellSettings, overrides: Mapping[str, Any], seed: int) -> Cell:
        """A cell of this experiment.

        Raises:
            ConfigError: as :func:`~loralign.experiments.cell.make_cell`.
        """
        return make_cell(command, base, overrides, seed, self.measures.asked(), self.launcher.accelerate)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {list(self.seeds)} are none or repeat", place="--seeds", fix="give each once")
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError("is a file", place=str(self.output), fix="choose another --output")


@dataclass(frozen=True, eq=False)
class ArmResult:
    """What an arm found.

    Attributes:
        arm: which.
        cells: its finished cells, a seed each.
        outcomes: of those, by measure.
        failures: why the others failed, by seed.
        groups: of the cells, where they are of several arms; only those of one group and seed are compared.
    """

    arm: Arm
    cells: tuple[CellRecord, ...]
    outcomes: tuple[dict[str, Samples], ...]
    failures: dict[int, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """Of the cells, in their order."""
        return [cell.seed for cell in self.cells]

    @property
    def units(self) -> Units:
        """Outcomes by group and seed."""
        groups = self.groups or ("",) * len(self.cells)
        return dict(zip(zip(groups, self.seeds, strict=True), self.outcomes, strict=True))

    @property
    def keys(self) -> set[str]:
        """Measures that every seed has."""
        return set.intersection(*map(set, self.outcomes)) if self.outcomes else set()


def run_arms(
    name: str, command: Command, base: CellSettings, arms: Sequence[Arm], options: ExperimentOptions
) -> list[ArmResult]:
    """Run every arm with every seed, none twice, and collect what they found.

    Any number of processes on any number of machines may call this with the same arguments and one storage: they share
    the cells, and each returns when all are done.

    Args:
        name: of the experiment.
        command: that a cell runs.
        base: recipe that all arms share, of :func:`~loralign.experiments.cell.base_settings`.
        arms: what differs in each.
        options: seeds, places, measures.

    Returns:
        One result for each arm, in their order; an arm may have failed with some seeds or all.

    Raises:
        LoralignError: an arm's settings are no recipe, or the prompts to measure on cannot be read; before any cell is
            run.
    """
    cells = {
        (arm.name, seed): options.cell(command, base, arm.overrides, seed) for seed in options.seeds for arm in arms
    }
    if len(cells) < len(arms) * len(options.seeds):
        raise ConfigError("two arms have one name", place=name, fix="name them differently")
    options.measures.check()
    store = CellStore(options.output)
    # In an order that does not depend on that of the words: Optuna keeps a study's choices and refuses others.
    names, seeds = sorted(arm.name for arm in arms), sorted(options.seeds)

    def objective(trial: Trial) -> float:
        arm = trial.suggest_categorical("arm", names)
        seed = trial.suggest_categorical("seed", seeds)
        return run_cell(store, cells[arm, seed], options.launcher).seconds

    def wanted(parameters: Mapping[str, Any]) -> bool:
        record = store.record(cells[parameters["arm"], parameters["seed"]])
        return record is None or (options.launcher.retry and not record.finished)

    work = Work(
        study_name(name, cells.values()),
        Storage.beside(options.output, options.storage),
        directions=("minimize",),
        tell=options.tell,
    )
    work.run_all([{"arm": arm, "seed": seed} for arm, seed in cells], objective, wanted)
    return [_collect(store, arm, {seed: cells[arm.name, seed] for seed in options.seeds}) for arm in arms]


def study_name(name: str, cells: Collection[Cell]) -> str:
    """The name under which workers find each other: another for other cells, or where other things are measured."""
    measured = {one.fingerprint for cell in cells for one in cell.measures}
    identity = {"cells": sorted(cell.fingerprint for cell in cells), "measured": sorted(measured)}
    return f"{name}-{identity_digest(identity)[:12]}"


def start_of(base: CellSettings, output: Path) -> CellSettings:
    """The base recipe with an alignment adapter in place of a model merged once for all cells, not once for each.

    Args:
        base: of ``loralign adapt``.
        output: of the experiment, where the merged model is kept.

    Raises:
        LoralignError: the adapter cannot be merged.
    """
    model = base.get("model")
    if not is_adapter(model):
        return base
    digest = hashlib.sha256()
    for file in sorted(inspect_adapter(str(model)).path.glob("adapter_*")):
        digest.update(file.read_bytes())
    target = (output / "starts" / f"model-{digest.hexdigest()[:16]}").resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            merge_adapter(str(model), target)
    return {**base, "model": str(target)}


def _collect(store: CellStore, arm: Arm, cells: Mapping[int, Cell]) -> ArmResult:
    finished, failures = [], {}
    for seed, cell in cells.items():
        record = store.record(cell)
        if record is not None and record.finished:
            finished.append(record)
        else:
            failures[seed] = record.error or "unknown" if record is not None else "its worker died too often"
    return ArmResult(arm, tuple(finished), tuple(outcome(record) for record in finished), failures)
