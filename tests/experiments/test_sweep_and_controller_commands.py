from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loralign.errors import ConfigError
from loralign.experiments.cell import CellSettings, base_settings
from loralign.experiments.experiment import ExperimentOptions
from loralign.experiments.measuring import Measures
from loralign.experiments.running import CellFailed
from loralign.experiments.search import run_search
from loralign.experiments.search_plan import SearchPlan
from loralign.experiments.space_syntax import parse_space
from loralign.experiments.store import CellRecord, CellStore
from loralign.experiments.sweep import Wanted, sweep
from tests.cli.conftest import assert_refused
from tests.experiments.made_up import samples

FOR_DRIFT = ("--trade", "drift", "task_gain", "--budget", "0.5", "--judged_prompts", "0")


def cells(output: Path) -> dict[str, int]:
    """When each cell was finished."""
    return {str(file): file.stat().st_mtime_ns for file in output.glob("cells/*/cell.json")}


def test_a_sweep_finds_a_front_and_neither_it_nor_a_search_of_the_same_points_runs_a_cell_twice(
    loralign: Any, adapting: list[str], tmp_path: Path
) -> None:
    words = ["sweep", *adapting, "--output", "out", *FOR_DRIFT]
    grid = [*words, "--space", "lora_r=4:5:2", "guard_projection=hard,soft", "--json"]
    first = loralign(*grid)
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert found["headline"].startswith("Recommended within drift ≤ 0.5: trial ")
    rows = pq.read_table(found["results"]).to_pylist()
    assert {(row["lora_r"], row["guard_projection"]) for row in rows} == {
        (r, p) for r in (4, 5) for p in ("hard", "soft")
    }
    assert len({row["arm"] for row in rows if row["recommended"] == "yes"}) == 1
    for place in ("page", "table"):
        assert "Pareto front" in Path(found[place]).read_text()

    before = cells(tmp_path / "out")
    assert len(before) == 4
    assert json.loads(loralign(*grid).out) == found
    for sampler in ("tpe", "nsga2"):
        search = [*words, "--space", "lora_r=4:5", "guard_projection=hard,soft", "--sampler", sampler, "--trials", "3"]
        once, twice = loralign(*search), loralign(*search)
        assert once.code == 0, once.err
        assert once.out == twice.out
        assert "[3/3]" in once.err
        assert "[0/3]" not in twice.err
        # Results of the grid are not touched, and more trials of a search take the place of fewer.
        more = loralign(*search[:-1], "4")
        places = [one.err.splitlines()[-1].partition("these results are in ")[2] for one in (once, twice, more)]
        assert re.fullmatch(r"out/results/sweep-adapt-[0-9a-f]{8}", places[0])
        assert places == [places[0]] * 3
    assert cells(tmp_path / "out") == before


def test_a_fault_of_the_space_is_told_before_anything_is_run(
    loralign: Any, adapting: list[str], tmp_path: Path
) -> None:
    words = ["sweep", *adapting, "--output", "out", "--guard", "none"]
    assert_refused(loralign(*words), "no field varies")
    assert_refused(loralign(*words, "--space", "lora_r=4:8"), "without a number of points", "lora_r=4:8:4")
    assert_refused(loralign(*words, "--space", "lora_r=4,many"), "lora_r", "many")
    # Its far end is refused by the recipe itself.
    out_of_range = ["--space", "collision_alpha=0.5:2", "--sampler", "tpe"]
    assert_refused(loralign(*words, *out_of_range), "collision_alpha", "out of range")
    assert_refused(loralign(*words, "--space", "lora_r=4,8", "--reference", "0"), "--reference", "1, not 2")
    ranks = ["--space", "lora_r=4,8"]
    assert_refused(loralign(*words, *ranks, "--judged_prompts", "0"), "no answer is judged", "--driftcheck")
    assert_refused(loralign(*words, *ranks, "--trade", "drift", "task:sst2"), "no task is scored", "--tasks")
    assert_refused(
        loralign(*words, *ranks, "--judged_prompts", "0", *FOR_DRIFT[:3], "--keep", "0.9"), "--keep", "judged"
    )
    betas = ["sweep", "align", "--output", "out", "--space", "beta=0.1,0.2"]
    assert_refused(loralign(*betas, "--keep", "0.9"), "--keep", "no answer is judged", "--guard")
    assert_refused(loralign(*betas, "--keep", "0.9", "--guard", "auto"), "no answer is judged")
    assert_refused(loralign(*betas, "--trade", "drift", "accuracy"), "without a guard nothing is probed")
    assert_refused(loralign(*words, *ranks, "--trade", "drift", "accuracy"), "no run of loralign adapt", "task_gain")
    assert_refused(loralign(*words, *ranks, "--trade", "drift", "forgetting"), "no run of loralign adapt")
    assert_refused(loralign(*betas, "--trade", "reference_drift", "task_gain"), "no run of loralign align")
    assert_refused(
        loralign(*words, *ranks, "--judged_prompts", "0", "--trade", "over_refusal", "task_gain"), "no over_refusal"
    )
    assert not (tmp_path / "out" / "cells").exists()


def test_pairs_of_ones_own_need_others_to_be_scored_on(loralign: Any, tmp_path: Path) -> None:
    """All arms would be trained, and then there would be nothing to compare them by."""
    for command in (["ablate", "align"], ["sweep", "align", "--space", "beta=0.1,0.2"]):
        result = loralign(*command, "--output", "out", "--data", "helpful=pairs.jsonl")
        assert_refused(result, "no pairs to score the arms on", "--validation_data")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["judged_prompts=8,16"], []])
def test_a_guarded_alignment_has_a_drift_and_a_retention_to_search_for(
    model: Path, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[SearchPlan] = []

    def run_search(name: str, command: str, base: Any, plan: SearchPlan, options: Any) -> list[Any]:
        searched.append(plan)
        return []

    monkeypatch.setattr("loralign.experiments.sweep.run_search", run_search)
    words = ["--model", str(model), "--guard", "auto", *([] if more else ["--judged_prompts", "8"])]
    plan = SearchPlan(parse_space("align", ["beta=0.1,0.2", *more]), ("drift", "accuracy"))
    with pytest.raises(ConfigError, match="no trial has finished"):
        sweep("align", base_settings("align", words), ExperimentOptions(tmp_path), plan, Wanted(keep=0.9))
    assert searched == [plan]


def test_the_controller_is_put_beside_fixed_weights_and_repeated_runs_nothing(
    loralign: Any, adapting: list[str], tmp_path: Path
) -> None:
    words = ["controller", *adapting, "--output", "out", "--judged_prompts", "0", "--budgets", "0.5", "--factors", "3"]
    first = loralign(*words, "--json")
    assert first.code == 0, first.err
    found = json.loads(first.out)
    assert found["headline"].startswith("The controller met 1 of 1 budgets with one run each")
    weights = {row["arm"]: row["lambda_alignment"] for row in pq.read_table(found["results"]).to_pylist()}
    assert weights["λ × 3"] == 30
    before = cells(tmp_path / "out")
    assert len(before) == 2
    assert json.loads(loralign(*words, "--json").out) == found
    assert cells(tmp_path / "out") == before
    assert_refused(loralign(*words[:-1], "3", "3"), "--factors", "3, 3 will not do")


MEASURED = {"drift": 0.1, "task_gain": 0.2}


@pytest.fixture
def searching(adapting: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A search of ``lora_r`` whose cells are made up: ranks from 6 on run out of memory."""
    ran: list[tuple[int, int]] = []

    def run_cell(store: CellStore, cell: Any, launcher: Any) -> CellRecord:
        known = store.record(cell)
        if known is None:
            ran.append((cell.settings["lora_r"], cell.seed))
            failed = cell.settings["lora_r"] >= 6
            known = store.keep(cell, "failed" if failed else "finished", 1.0, "out of memory" if failed else None)
        if not known.finished:
            raise CellFailed(known.error)
        return known

    def outcome(record: CellRecord) -> dict[str, Any]:
        return {key: samples(mean + record.seed, 0.0) for key, mean in MEASURED.items()}

    monkeypatch.setattr("loralign.experiments.search.run_cell", run_cell)
    monkeypatch.setattr("loralign.experiments.search.outcome", outcome)
    monkeypatch.setattr(Measures, "check", lambda self: None)
    base: CellSettings = base_settings("adapt", [*adapting, "--guard", "none"])

    def search(measured: Measures | None = None, **changes: Any) -> Any:
        plan = {"space": parse_space("adapt", ["lora_r=4:8"]), "measures": ("drift", "task_gain"), "sampler": "tpe"}
        options = ExperimentOptions(tmp_path / "out", seeds=(0, 1), measures=measured or Measures())
        return run_search("search", "adapt", base, SearchPlan(**{**plan, "trials": 6, **changes}), options)

    search.ran = ran
    return search


def test_a_failed_seed_fails_its_trial_and_the_search_goes_on(searching: Any) -> None:
    results = searching()
    ranks = [result.arm.overrides["lora_r"] for result in results]
    assert len(set(ranks)) == len(ranks)
    assert any(rank >= 6 for rank in ranks)
    for result in results:
        failed = result.arm.overrides["lora_r"] >= 6
        # A trial is given up with its first failed seed.
        assert (result.failures, len(result.cells)) == (({0: "out of memory"}, 0) if failed else ({}, 2))
    assert len(searching.ran) == sum(1 if rank >= 6 else 2 for rank in ranks)
    before = list(searching.ran)
    assert [result.arm for result in searching()] == [result.arm for result in results]
    assert searching.ran == before
    # A larger number of trials goes on where the smaller ended.
    assert [result.arm for result in searching(trials=9)][: len(results)] == [result.arm for result in results]


def test_a_search_that_measures_something_else_asks_its_own_trials(searching: Any) -> None:
    searching(trials=12)
    whole = {cell for cell in searching.ran if cell[0] < 6}
    assert whole
    searching.ran.clear()
    # Every cell that did not fail has something to measure, and the values of trials need not be the same.
    searching(trials=12, measured=Measures(tasks=("mmlu",)))
    assert set(searching.ran) == whole


def test_a_measure_that_trials_lack_ends_the_search_at_once(searching: Any) -> None:
    space = parse_space("adapt", ["lora_r=4,5"])
    with pytest.raises(ConfigError, match=r"refuses none of the unsafe prompts.*drift, task_gain"):
        searching(space=space, sampler="grid", measures=("retention", "task_gain"))
    assert searching.ran == [(4, 0), (4, 1)]
    with pytest.raises(ConfigError, match="do not have 'task:sst2'"):
        searching(space=space, sampler="grid", measures=("drift", "task:sst2"))
    assert searching.ran == [(4, 0), (4, 1)]
