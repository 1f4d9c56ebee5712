from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from loralign.data.driftcheck import build_driftcheck
from loralign.errors import DataError, StateError
from loralign.experiments.cell import Cell, base_settings, make_cell
from loralign.experiments.experiment import Arm, ExperimentOptions, run_arms, study_name
from loralign.experiments.failure import CellFailed
from loralign.experiments.measurement import Measurement
from loralign.experiments.measuring import Measures
from loralign.experiments.outcomes import outcome
from loralign.experiments.running import Launcher, run_cell
from loralign.experiments.seed_means import value
from loralign.experiments.store import CellStore, load_record
from loralign.runs import parse_adapt_recipe, run_adaptation

ADAPTER = "run/adapter/adapter_model.safetensors"


def cell_of(words: list[str], seed: int = 0, measures: Measures | None = None, **overrides: Any) -> Cell:
    return make_cell("adapt", base_settings("adapt", words), overrides, seed, (measures or Measures()).asked())


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / ADAPTER)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_cell_is_the_command_itself_and_is_run_once(adapting: list[str], tmp_path: Path) -> None:
    store = CellStore(tmp_path / "store")
    cell = cell_of(adapting, seed=3, guard="none")
    # Another cell first, so that what it leaves in this process would show.
    run_cell(store, cell_of(adapting, seed=4, guard="none"))
    record = run_cell(store, cell)
    words = [*adapting, "--seed", "3", "--guard", "none", "--output_dir", str(tmp_path / "alone" / "run")]
    run_adaptation(parse_adapt_recipe(words))
    assert equal(weights(record.directory), weights(tmp_path / "alone"))
    assert not list(record.run.glob("checkpoint-*"))
    before = (record.directory / ADAPTER).stat().st_mtime_ns
    assert run_cell(store, cell) == record
    assert (record.directory / ADAPTER).stat().st_mtime_ns == before
    # A store may be moved: nothing in it knows where it lies.
    moved = shutil.move(store.directory, tmp_path / "moved")
    found = CellStore(Path(moved)).record(cell)
    assert found is not None
    assert outcome(found).keys() == {"task_loss", "task_gain", "drift", "refusal", "over_refusal"}


def test_a_failure_is_recorded_with_its_reason_and_tried_again_only_when_asked(
    adapting: list[str], tmp_path: Path
) -> None:
    words = [word if not word.endswith("kept.jsonl") else str(tmp_path / "kept.jsonl") for word in adapting]
    kept = next(Path(word) for word in adapting if word.endswith("kept.jsonl"))
    (tmp_path / "kept.jsonl").write_text(kept.read_text())
    cell = cell_of(words, guard="none", probe_data=str(tmp_path / "missing.jsonl"))
    store = CellStore(tmp_path / "store")
    with pytest.raises(CellFailed, match="missing"):
        run_cell(store, cell)
    record = store.record(cell)
    assert record is not None
    assert (record.status, record.finished) == ("failed", False)
    assert "Traceback" in (record.directory / "error.txt").read_text()
    (tmp_path / "missing.jsonl").write_text(kept.read_text())
    with pytest.raises(CellFailed, match="missing"):
        run_cell(store, cell)
    assert run_cell(store, cell, Launcher(retry=True)).finished


def test_a_killed_cell_goes_on_from_its_checkpoint(adapting: list[str], tmp_path: Path) -> None:
    words = [*adapting, "--max_steps", "40"]
    cell, store = cell_of(words, guard="none"), CellStore(tmp_path / "store")
    whole = run_cell(CellStore(tmp_path / "other"), cell)
    program = (
        "import sys; from pathlib import Path\n"
        "from loralign.experiments.cell import base_settings, make_cell\n"
        "from loralign.experiments.running import run_cell\n"
        "from loralign.experiments.store import CellStore\n"
        "base = base_settings('adapt', sys.argv[2:])\n"
        "run_cell(CellStore(Path(sys.argv[1])), make_cell('adapt', base, {'guard': 'none'}, 0))\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(store.directory), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    place = store.place(cell)
    while not list((place / "run").glob("checkpoint-*/trainer_state.json")):
        assert worker.poll() is None
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert store.record(cell) is None
    # The lock went with its owner.
    record = run_cell(store, cell)
    assert equal(weights(record.directory), weights(whole.directory))


def test_adapters_are_asked_the_prompts_of_a_set_and_their_start_once(adapting: list[str], tmp_path: Path) -> None:
    build_driftcheck(["builtin"], tmp_path / "set", safe=60, unsafe=60, seed=0)
    measures = Measures(driftcheck=str(tmp_path / "set"), prompts=4)
    store = CellStore(tmp_path / "store")
    records = [run_cell(store, cell_of(adapting, seed, measures, guard="none")) for seed in (0, 1)]
    assert len([path for path in (store.directory / "starts").iterdir() if path.is_dir()]) == 1
    for record in records:
        assert outcome(record)["refusal"][0].size == 2
        assert 0 <= value(outcome(record)["refusal"]) <= 1
    assert len([path for path in (store.directory / "cells").iterdir() if path.is_dir()]) == 2
    # The set was not asked of this call's cell, which is the same.
    plain = run_cell(store, cell_of(adapting, 0, guard="none"))
    assert (plain.directory, plain.measures) == (records[0].directory, ())


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done of cells whose training and measuring are made up; text of ``broken`` cannot be measured."""
    done: list[str] = []

    def run_adaptation(recipe: Any) -> None:
        done.append("run")
        directory = Path(recipe.training.output_dir)
        (directory / "adapter").mkdir(parents=True)
        (directory / "run.json").write_text('{"status": "finished"}')

    def measure_cell(store: CellStore, cell: Cell, one: Measurement) -> None:
        assert (store.place(cell) / "run" / "adapter").is_dir()
        done.append(one.settings.get("task", one.kind))
        if one.kind == "language" and "broken" in one.settings["text"]:
            raise DataError("holds no text")

    monkeypatch.setattr("loralign.experiments.running.run_adaptation", run_adaptation)
    monkeypatch.setattr("loralign.experiments.running.measure_cell", measure_cell)
    return done


def test_a_finished_cell_is_only_measured_and_each_measurement_is_done_once(
    adapting: list[str], work: list[str], tmp_path: Path
) -> None:
    store = CellStore(tmp_path / "store")

    def run(*tasks: str, driftcheck: str | None = None) -> list[str]:
        work.clear()
        cell = cell_of(adapting, measures=Measures(driftcheck, tasks=tasks), guard="none")
        record = run_cell(store, cell)
        assert (record.finished, record.measures) == (True, cell.measures)
        assert store.record(cell) == record
        return list(work)

    assert run() == ["run"]
    assert store.record(cell_of(adapting, measures=Measures(tasks=("mmlu",)), guard="none")) is None
    assert [run("mmlu"), run("mmlu", "gsm8k"), run("gsm8k"), run()] == [["mmlu"], ["gsm8k"], [], []]
    # Another set is measured beside the first, which stays.
    assert run(driftcheck="one") == run(driftcheck="other") == ["driftcheck"]
    assert run("mmlu", driftcheck="one") == []
    # Without the adapter there is nothing to measure, but what is known stays known.
    (place,) = (store.directory / "cells").glob("*/run/adapter")
    place.rmdir()
    assert run("mmlu", driftcheck="other") == []
    assert run("arc_easy") == ["run", "arc_easy"]


def test_a_measurement_that_fails_takes_nothing_away_from_what_is_finished(
    adapting: list[str], work: list[str], tmp_path: Path
) -> None:
    store, plain = CellStore(tmp_path / "store"), cell_of(adapting, guard="none")
    bad = cell_of(adapting, measures=Measures(tasks=("mmlu",), language=("broken",)), guard="none")
    for _ in range(2):
        with pytest.raises(CellFailed, match="holds no text"):
            run_cell(store, bad)
    # Neither again nor what comes after it, until it is asked for.
    assert work == ["run", "language"]
    record = store.record(bad)
    assert record is not None
    assert (record.status, record.error) == ("failed", "holds no text")
    assert "DataError" in (record.measured("language")[0] / "error.txt").read_text()
    assert run_cell(store, plain).finished
    with pytest.raises(CellFailed, match="holds no text"):
        run_cell(store, bad, Launcher(retry=True))
    good = cell_of(adapting, measures=Measures(tasks=("mmlu",)), guard="none")
    assert run_cell(store, good).finished
    assert work == ["run", "language", "language", "mmlu"]


def test_whoever_measures_a_cell_has_it_to_oneself(adapting: list[str], tmp_path: Path) -> None:
    store, plain = CellStore(tmp_path / "store"), cell_of(adapting, guard="none")
    measured = cell_of(adapting, measures=Measures(tasks=("mmlu",)), guard="none")
    locks = set()
    for cell in (plain, measured):
        with store.locked(cell):
            for lock in store.directory.rglob("*.lock"):
                with pytest.raises(Timeout):
                    FileLock(lock).acquire(timeout=0)
                locks.add(lock)
    assert len(locks) == 1


def test_arms_that_are_done_are_measured_when_more_is_asked_of_them(
    adapting: list[str], work: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralign.experiments.experiment.outcome", lambda record: dict.fromkeys(record.measures, ()))
    monkeypatch.setattr(Measures, "check", lambda self: None)
    base = base_settings("adapt", adapting)

    def run(*tasks: str) -> list[int]:
        work.clear()
        options = ExperimentOptions(tmp_path / "store", (0, 1), measures=Measures(tasks=tasks))
        (result,) = run_arms("ablate", "adapt", base, [Arm("plain", {"guard": "none"})], options)
        assert result.seeds == [0, 1]
        return [len(one) for one in result.outcomes]

    assert (run(), work) == ([0, 0], ["run", "run"])
    assert (run("mmlu"), work) == ([1, 1], ["mmlu", "mmlu"])
    assert (run("mmlu", "gsm8k"), work) == ([2, 2], ["gsm8k", "gsm8k"])
    assert (run("mmlu"), work) == ([1, 1], [])


def test_an_interrupted_experiment_goes_on_whatever_the_order_of_its_words(
    adapting: list[str], work: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loralign.experiments.experiment.outcome", lambda record: {})
    base = base_settings("adapt", adapting)
    arms = [Arm("plain", {"guard": "none"}), Arm("short", {"guard": "none", "max_steps": 1})]
    run = run_cell

    def interrupted(*words: Any) -> Any:
        if work:
            raise KeyboardInterrupt
        return run(*words)

    monkeypatch.setattr("loralign.experiments.experiment.run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_arms("ablate", "adapt", base, arms, ExperimentOptions(tmp_path / "store", (0, 1)))
    monkeypatch.setattr("loralign.experiments.experiment.run_cell", run)
    found = run_arms("ablate", "adapt", base, arms[::-1], ExperimentOptions(tmp_path / "store", (1, 0)))
    assert [one.arm.name for one in found] == ["short", "plain"]
    assert work == ["run"] * 4


def test_workers_that_measure_something_else_do_not_share_trials(adapting: list[str]) -> None:
    names = {
        study_name("ablate", [cell_of(adapting, measures=Measures(tasks=tasks), guard="none")])
        for tasks in ((), ("mmlu",), ("mmlu", "gsm8k"), ("gsm8k", "mmlu"))
    }
    assert len(names) == 3


def test_a_damaged_record_says_which_directory_to_remove(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(StateError, match="remove the cell's directory"):
        load_record(tmp_path)
    (tmp_path / "cell.json").write_text(json.dumps({"version": 2, "kind": "cell"}))
    with pytest.raises(StateError, match="remove the cell's directory"):
        load_record(tmp_path)
    assert load_record(tmp_path / "nothing") is None


def test_a_cell_runs_under_accelerate(adapting: list[str], tmp_path: Path) -> None:
    store = CellStore(tmp_path / "store")
    launcher = Launcher(accelerate=("--num_processes", "1", "--num_machines", "1", "--cpu", "--mixed_precision", "no"))
    cell = cell_of(adapting, guard="none")
    record = run_cell(store, cell, launcher)
    assert "adapter" in (record.directory / "log.txt").read_text()
    assert equal(weights(record.directory), weights(run_cell(CellStore(tmp_path / "other"), cell).directory))
    bad = cell_of(adapting, guard=str(tmp_path / "no-subspace"))
    with pytest.raises(CellFailed, match=r"error: .*no-subspace"):
        run_cell(store, bad, launcher)
