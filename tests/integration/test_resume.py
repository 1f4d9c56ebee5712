"""Runs that are killed resume from their last whole checkpoint and end as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loralign.errors import StateError
from loralign.training import GeometryConfig, is_whole, last_whole_checkpoint
from loralign.training.checkpoint import MANIFEST
from tests.integration.children import Child
from tests.integration.work import Run, train, train_with_snapshots
from tests.training import runs

SAVING = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
# Half of the update may go, so that refinement really replaces rows on so short a run.
GEO = {"weighting": "geo", "measure_every": 2, "refine_every": 3, "refine_tolerance": 0.5, "weight_decay_past": 0.5}
SCHEDULES = {
    "accumulated": (GEO | {"refine_mode": "accumulated"}, SAVING),
    "balanced": (
        GEO | {"refine_mode": "balanced", "refine_at_start": True, "weighting": "geo-layer"},
        SAVING | {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
    ),
}
STATE = ("geometry_state.json", "geometry_state.safetensors", "adapter_model.safetensors")


def _run(schedule: str, output: Path) -> Run:
    geometry, options = SCHEDULES[schedule]
    return Run(output, geometry, options, dropout=0.1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The finished run of a schedule, made once."""
    base = tmp_path_factory.mktemp("uninterrupted")

    def get(schedule: str) -> Run:
        run = _run(schedule, base / schedule)
        if not run.output.exists():
            Child(train, run, log=run.beside("log")).wait()
        return run

    return get


def _assert_same_end(got: Run, expected: Run) -> None:
    state, wanted = got.state(), expected.state()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert got.log() == expected.log()
    for name in STATE:
        assert (got.output / "checkpoint-8" / name).read_bytes() == (
            expected.output / "checkpoint-8" / name
        ).read_bytes()
    assert not list(got.output.glob(".*")), "something unfinished is left"


def _resume(run: Run) -> None:
    with (run.output / "geometry.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 7, "lo')  # as a kill in the middle of a write would leave it
    resumed = replace(run, resume=True, at=None)
    Child(train, resumed, log=run.beside("resumed.log")).wait()


def test_the_runs_to_come_have_something_to_lose(uninterrupted: Callable[[str], Run]) -> None:
    for schedule, measured, refined in (
        ("accumulated", [0, 2, 4, 6], [2, 5]),
        ("balanced", [0, 2, 4, 5, 6], [-1, 2, 5]),
    ):
        run = uninterrupted(schedule)
        assert [record["step"] for record in run.records("measurement")] == measured
        refinements = run.records("refinement")
        assert [record["step"] for record in refinements] == refined
        assert all(record["replaced"] > 0 for record in refinements)
        assert [record["step"] for record in run.records("step")] == list(range(8))
    weights = uninterrupted("accumulated").records("measurement")[-1]["weights"]
    assert max(weights.values()) > 1.01


@pytest.mark.parametrize(
    ("schedule", "moment", "whole"),
    [
        ("accumulated", "before the first save", None),
        ("accumulated", "between steps", 4),
        ("accumulated", "optimiser half written", 2),
        ("accumulated", "manifest written", 2),
        ("accumulated", "half of the layers refined", 4),
        ("balanced", "before the first save", None),
        ("balanced", "half of the layers refined", 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("accumulated", "inside a step", 4),
                ("accumulated", "adapter written", 2),
                ("accumulated", "geometry written", 2),
                ("accumulated", "manifest not yet written", 2),
                ("accumulated", "named but not flushed", 4),
                ("balanced", "between steps", 4),
                ("balanced", "inside a step", 4),
                ("balanced", "optimiser half written", 2),
                ("balanced", "geometry not yet written", 2),
            )
        ),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    schedule: str, moment: str, whole: int | None, tmp_path: Path, uninterrupted: Callable[[str], Run]
) -> None:
    run = replace(_run(schedule, tmp_path / "run"), at=moment)
    Child(train, run, log=run.beside("log")).kill_at(run.beside("reached"))
    left = last_whole_checkpoint(run.output)
    assert left == (None if whole is None else run.output / f"checkpoint-{whole}")
    _resume(run)
    _assert_same_end(run, uninterrupted(schedule))


def test_no_moment_of_a_save_leaves_a_false_checkpoint(tmp_path: Path, uninterrupted: Callable[[str], Run]) -> None:
    run = _run("accumulated", tmp_path / "run")
    run = replace(run, options={**run.options, "save_total_limit": 2, "max_steps": 6}, at="before the sixth save")
    snapshots = tmp_path / "snapshots"
    Child(train_with_snapshots, run, snapshots, log=run.beside("log")).wait()
    assert {path.name for path in run.output.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    found = []
    for snapshot in sorted(snapshots.iterdir()):
        last = last_whole_checkpoint(snapshot)
        assert last is not None
        found.append(last.name)
        for path in snapshot.glob("checkpoint-*"):
            if is_whole(path):
                original = uninterrupted("accumulated").output / path.name
                assert {file.name for file in path.iterdir()} == {file.name for file in original.iterdir()}
                for name in STATE:
                    assert (path / name).read_bytes() == (original / name).read_bytes()
    # One change from the fourth to the sixth: first while the save goes on, then while the second is rotated away.
    assert len(found) > 20
    assert found == sorted(found)
    assert set(found) == {"checkpoint-4", "checkpoint-6"}


@pytest.fixture
def copied(tmp_path: Path, uninterrupted: Callable[[str], Run]) -> Run:
    run = _run("accumulated", tmp_path / "run")
    shutil.copytree(uninterrupted("accumulated").output, run.output)
    return run


def test_a_checkpoint_that_lacks_anything_is_passed_over(copied: Run) -> None:
    last, before = copied.output / "checkpoint-8", copied.output / "checkpoint-6"
    files = sorted(file for file in last.iterdir())
    assert {"optimizer.pt", "rng_state.pth", "trainer_state.json", *STATE, MANIFEST} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        assert last_whole_checkpoint(copied.output) == last
        file.write_bytes(content[:-1] if file.name != MANIFEST else content[: len(content) // 2])
        assert last_whole_checkpoint(copied.output) == before
        file.unlink()
        assert last_whole_checkpoint(copied.output) == before
        file.write_bytes(content)
    for nonsense in ("", "[]", "null", "{}", '{"files": []}', '{"files": {"a": 1}}', "\x00"):
        (last / MANIFEST).write_text(nonsense)
        assert last_whole_checkpoint(copied.output) == before
    (copied.output / "checkpoint-10").write_text("a file")
    (copied.output / "checkpoint-12").mkdir()
    (copied.output / "checkpoint-x").mkdir()
    assert last_whole_checkpoint(copied.output) == before
    shutil.rmtree(before)
    assert last_whole_checkpoint(copied.output) == copied.output / "checkpoint-4"
    assert last_whole_checkpoint(copied.output / "nowhere") is None


def test_naming_a_checkpoint_that_is_not_whole_is_an_error(copied: Run) -> None:
    damaged = copied.output / "checkpoint-8"
    (damaged / "optimizer.pt").unlink()
    trainer = runs.trainer(copied.output, GeometryConfig(**copied.geometry), **copied.options)
    before = copied.log()
    with pytest.raises(StateError, match=r"checkpoint-8: the checkpoint is not whole \(resume from .*checkpoint-6\)"):
        trainer.train(resume_from_checkpoint=str(damaged))
    with pytest.raises(StateError, match="checkpoint-99"):
        trainer.train(resume_from_checkpoint=str(copied.output / "checkpoint-99"))
    assert copied.log() == before


def test_damaged_checkpoints_and_leftovers_do_not_change_a_resumed_run(
    copied: Run, uninterrupted: Callable[[str], Run]
) -> None:
    with (copied.output / "checkpoint-8" / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    (copied.output / "checkpoint-6" / MANIFEST).unlink()
    leftover = copied.output / ".saving-checkpoint" / "checkpoint-8"
    leftover.mkdir(parents=True)
    (leftover / "optimizer.pt").write_bytes(b"cut off")
    (leftover / "not_ours.json").write_text("{}")
    _resume(copied)
    _assert_same_end(copied, uninterrupted("accumulated"))
    assert is_whole(copied.output / "checkpoint-6")
    listed = json.loads((copied.output / "checkpoint-8" / MANIFEST).read_text())["files"]
    assert "not_ours.json" not in listed


def test_a_state_of_another_run_is_refused(copied: Run) -> None:
    whole = str(copied.output / "checkpoint-4")
    other = runs.trainer(
        copied.output,
        GeometryConfig(**copied.geometry),
        extra={"target_weights": {"honest": 2.0}},
        **copied.options,
    )
    with pytest.raises(StateError, match="resume with the objectives and target weights of the saved run"):
        other.train(resume_from_checkpoint=whole)
