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
from safetensors.torch import load_file

from loralign.data.driftcheck import build_driftcheck
from loralign.errors import StateError
from loralign.experiments.cell import Cell, base_settings, make_cell
from loralign.experiments.failure import CellFailed
from loralign.experiments.measuring import Measures
from loralign.experiments.outcomes import outcome
from loralign.experiments.running import Launcher, run_cell
from loralign.experiments.seed_means import value
from loralign.experiments.store import CellStore, load_record
from loralign.runs import parse_adapt_recipe, run_adaptation

ADAPTER = "run/adapter/adapter_model.safetensors"


def cell_of(words: list[str], seed: int = 0, measures: Measures | None = None, **overrides: Any) -> Cell:
    return make_cell("adapt", base_settings("adapt", words), overrides, seed, (measures or Measures()).to_json())


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
    plain = run_cell(store, cell_of(adapting, 0, guard="none"))
    assert plain.fingerprint != records[0].fingerprint


def test_a_damaged_record_says_which_directory_to_remove(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(StateError, match="remove the cell's directory"):
        load_record(tmp_path)
    (tmp_path / "cell.json").write_text(json.dumps({"version": 9, "kind": "cell"}))
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
