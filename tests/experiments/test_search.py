from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loralign.experiments.cell import Cell, base_settings
from loralign.experiments.experiment import ExperimentOptions
from loralign.experiments.grid import Progress
from loralign.experiments.measuring import Measures
from loralign.experiments.running import CellFailed
from loralign.experiments.search import run_search
from loralign.experiments.search_plan import SamplerName, SearchPlan
from loralign.experiments.space_syntax import parse_space


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_search_is_told_in_trials_however_many_seeds_each_has(
    adapting: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: SamplerName
) -> None:
    def run_cell(store: Any, cell: Cell, launcher: Any) -> None:
        raise CellFailed("out of memory")

    monkeypatch.setattr("loralign.experiments.search.run_cell", run_cell)
    monkeypatch.setattr(Measures, "check", lambda self: None)
    told: list[Progress] = []
    plan = SearchPlan(parse_space("adapt", ["lora_r=4,8"]), ("drift", "task_gain"), sampler, trials=2)
    options = ExperimentOptions(tmp_path / "out", seeds=(0, 1, 2), tell=told.append)
    run_search("search", "adapt", base_settings("adapt", [*adapting, "--guard", "none"]), plan, options)
    assert {(one.unit, one.total) for one in told} == {("trials", 2)}
    assert told[-1].finished == 2
