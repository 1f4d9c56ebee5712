"""Two CPU processes under DDP give what one process gives on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loralign.training import is_whole, last_whole_checkpoint
from loralign.training.checkpoint import MANIFEST
from tests.integration.children import Child, start_pair
from tests.integration.work import Run, train

SHARED: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
# Half of the update may go, so that refinement really replaces rows on so short a run.
REFINING = {"measure_every": 2, "refine_every": 3, "refine_tolerance": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "accumulated": (REFINING | {"weighting": "norm", "refine_mode": "accumulated"}, {}),
    "balanced": (
        REFINING | {"weighting": "geo", "refine_mode": "balanced", "refine_at_start": True},
        {"gradient_accumulation_steps": 2},
    ),
    "preservation": (
        {"weighting": "geo-layer", "measure_every": 1, "preservation_weight": 2.0, "preservation_batch_size": 2},
        {"gradient_accumulation_steps": 2},
    ),
}

# Singular vectors of close singular values magnify rounding, so new directions from gradients are compared in float64.
DOUBLE = ("balanced",)


def _one(case: str, base: Path) -> Run:
    geometry, options = CASES[case]
    options = SHARED | options | {"per_device_train_batch_size": 6}
    return Run(base / f"{case}-one", geometry, options, double=case in DOUBLE)


def _two(case: str, base: Path) -> Run:
    geometry, options = CASES[case]
    if "preservation_batch_size" in geometry:
        geometry = geometry | {"preservation_batch_size": geometry["preservation_batch_size"] // 2}
    return Run(
        base / f"{case}-two",
        geometry,
        SHARED | options | {"per_device_train_batch_size": 3, "ddp_backend": "gloo"},
        double=case in DOUBLE,
    )


@dataclass(frozen=True)
class Both:
    """The directory in which every case has been run with one process and with two."""

    base: Path

    def runs(self, case: str) -> tuple[Run, Run]:
        return _one(case, self.base), _two(case, self.base)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    base = tmp_path_factory.mktemp("processes")
    Child(train, *(_one(case, base) for case in CASES), log=base / "one.log").wait()
    for child in start_pair(train, *(_two(case, base) for case in CASES), log=base / "two.log"):
        child.wait()
    return Both(base)


def _numbers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, (*path, key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, float(value)


def _largest_difference(one: dict[str, Any], two: dict[str, Any], key: str, least: float = 1e-3) -> float:
    """Largest difference between the numbers of two records under a key, relative to them or to ``least``."""
    first, second = dict(_numbers(one[key])), dict(_numbers(two[key]))
    assert first.keys() == second.keys()
    assert first
    return max(abs(value - second[path]) / max(abs(value), least) for path, value in first.items())


@pytest.mark.parametrize("case", CASES)
def test_statistics_and_weights_are_those_of_one_process(both: Both, case: str) -> None:
    one, two = (run.records("measurement") for run in both.runs(case))
    assert [record["step"] for record in one] == [record["step"] for record in two]
    assert len(one) >= 3
    for first, second in zip(one, two, strict=True):
        for key in ("gradient_norm", "attenuation", "attenuation_average", "weights", "weights_in_force"):
            assert _largest_difference(first, second, key) < 1e-5, (first["step"], key)
        assert first["samples"] == second["samples"]
        assert first["directional_distortion"] == pytest.approx(second["directional_distortion"], rel=1e-5)
        assert first["step_distortion"] == pytest.approx(second["step_distortion"], rel=1e-5)
    assert _largest_difference(one[0], one[-1], "weights") > 1e-3, "the weights never moved"


@pytest.mark.parametrize("case", CASES)
def test_the_adapter_is_that_of_one_process(both: Both, case: str) -> None:
    one, two = (run.state() for run in both.runs(case))
    assert list(one) == list(two)
    for name, factor in one.items():
        if "lora_" in name:
            assert float((factor - two[name]).norm()) < 1e-5 * float(factor.norm()), name


@pytest.mark.parametrize("case", ["accumulated", "balanced"])
def test_refinement_is_that_of_one_process(both: Both, case: str) -> None:
    one, two = (run.records("refinement") for run in both.runs(case))
    assert [record["step"] for record in one] == [record["step"] for record in two]
    for first, second in zip(one, two, strict=True):
        assert first["replaced"] > 0
        assert first["replaced"] == second["replaced"]
        assert first["energy_moved"] == pytest.approx(second["energy_moved"], rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_losses_of_the_objectives_are_summed_over_processes(both: Both, case: str) -> None:
    one, two = (run.records("step") for run in both.runs(case))
    for first, second in zip(one, two, strict=True):
        assert _largest_difference(first, second, "objectives", least=0.1) < 2e-5


@pytest.mark.parametrize("case", CASES)
def test_only_one_process_writes(both: Both, case: str) -> None:
    one, two = both.runs(case)
    assert len(two.log().splitlines()) == len(one.log().splitlines())
    assert [record["step"] for record in two.records("step")] == list(range(6))
    assert {path.name for path in two.output.iterdir()} == {path.name for path in one.output.iterdir()}
    for step in (2, 4, 6):
        whole = two.output / f"checkpoint-{step}"
        assert is_whole(whole)
        listed = json.loads((whole / MANIFEST).read_text())["files"]
        # The generators' states are each process's own.
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(listed)
        assert set(listed) == {path.name for path in whole.iterdir()} - {MANIFEST}


@pytest.mark.parametrize(
    ("case", "moment", "whole"),
    [
        ("balanced", "geometry written", "checkpoint-2"),
        pytest.param("accumulated", "between steps", "checkpoint-4", marks=pytest.mark.slow),
        pytest.param("preservation", "between steps", "checkpoint-4", marks=pytest.mark.slow),
    ],
)
def test_two_killed_processes_resume_bit_for_bit(
    both: Both, case: str, moment: str, whole: str, tmp_path: Path
) -> None:
    _, expected = both.runs(case)
    run = replace(_two(case, tmp_path), at=moment)
    first, second = start_pair(train, run, log=run.beside("log"))
    # The second first: it might see the first one's end and fail by itself.
    second.kill_at(run.beside("reached"))
    first.kill()
    assert last_whole_checkpoint(run.output) == run.output / whole
    for child in start_pair(train, replace(run, at=None, resume=True), log=run.beside("resumed.log")):
        child.wait()
    state, wanted = run.state(), expected.state()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert run.log() == expected.log()
    assert not list(run.output.glob(".*"))


@pytest.mark.slow
def test_torchs_launcher_gives_the_same(both: Both, tmp_path: Path) -> None:
    _, expected = both.runs("accumulated")
    run = _two("accumulated", tmp_path)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(asdict(run) | {"output": str(run.output)}))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.integration.launched", str(file)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    state, wanted = run.state(), expected.state()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
