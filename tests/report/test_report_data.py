"""Reading run directories, whole and damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from loralign.errors import StateError
from loralign.report import load_run
from loralign.report.coerce import clean_text, number
from tests.report.conftest import LAYERS, OBJECTIVES, about, measurement, training_step, write_lines


def test_a_whole_run_is_read_without_a_complaint(run_directory: Path) -> None:
    run = load_run(run_directory)
    assert run.notes == ()
    assert run.objectives == OBJECTIVES
    assert [m.step for m in run.measurements] == list(range(0, 61, 2))
    assert len(run.steps) == 61
    assert run.refinements[0].layers[0].name == LAYERS[0]
    assert run.refinements[0].after["honest"] == 0.44
    assert run.scores["after"].objectives["honest"]["accuracy_normalised"].low == pytest.approx(0.63)
    assert run.scores["after"].pairs["honest"] == 96
    assert run.samples[1].objective == "honest"
    assert run.last is not None
    assert run.last.step == 60
    assert len(run.last.layer_attenuation) == 210


def test_a_cut_off_last_line_is_left_out_and_said(own_run: Path) -> None:
    log = own_run / "geometry.jsonl"
    text = log.read_text(encoding="utf-8")
    log.write_text(text[:-40], encoding="utf-8")
    run = load_run(own_run)
    assert len(run.steps) == 60
    assert run.notes == ("The last line of geometry.jsonl is cut off (the run was stopped while writing it).",)


def test_a_bad_line_in_the_middle_is_counted(own_run: Path) -> None:
    log = own_run / "geometry.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3][:20]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert load_run(own_run).notes == ("1 lines of geometry.jsonl cannot be read and are left out.",)


def test_what_a_killed_run_logged_beyond_its_checkpoint_is_replaced(own_run: Path) -> None:
    records = [training_step(step, random.Random(0)) for step in [*range(10), *range(6, 9)]]
    records[-1]["loss"] = 7.0
    write_lines(own_run / "geometry.jsonl", records)
    steps = load_run(own_run).steps
    assert [step.step for step in steps] == list(range(9))
    assert steps[-1].loss == 7.0


@pytest.mark.parametrize("name", ["geometry.jsonl", "scores.json", "samples.json"])
def test_an_absent_file_is_named_and_nothing_else_is_lost(own_run: Path, name: str) -> None:
    (own_run / name).unlink()
    run = load_run(own_run)
    assert len(run.notes) == 1
    assert name in run.notes[0]
    assert run.objectives == OBJECTIVES


@pytest.mark.parametrize("content", ["{", "\x00", "[" * 100_000, "9" * 5000])
def test_damaged_scores_are_left_out(own_run: Path, content: str) -> None:
    (own_run / "scores.json").write_text(content, encoding="utf-8")
    run = load_run(own_run)
    assert run.scores == {}
    assert "scores.json" in run.notes[0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no run.json"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"version": 99}', "version 99 is unknown"),
    ],
)
def test_a_directory_without_a_readable_run_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(StateError, match=told) as caught:
        load_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 3, "text", [], {}, [[]], {"a": {"b": None}}])
def test_values_of_the_wrong_type_count_as_absent(own_run: Path, wrong: Any) -> None:
    record = dict.fromkeys(measurement(0, random.Random(0)), wrong) | {"kind": "measurement", "step": 4}
    write_lines(own_run / "geometry.jsonl", [record])
    description = dict.fromkeys(about(), wrong) | {"version": 1}
    for name, value in (("run.json", description), ("scores.json", {"after": wrong}), ("samples.json", [wrong])):
        (own_run / name).write_text(json.dumps(value), encoding="utf-8")
    run = load_run(own_run)
    assert len(run.measurements) == 1
    assert run.last is None


def test_weights_per_layer_show_as_their_mean(own_run: Path) -> None:
    record = {"kind": "measurement", "step": 0, "attenuation": {"a": 0.3}}
    record["weights"] = {"per_layer": {"x": {"a": 0.5}, "y": {"a": 1.5}}, "mean": {"a": 1.0}}
    write_lines(own_run / "geometry.jsonl", [record])
    read = load_run(own_run).measurements[0]
    assert read.weights == {"a": 1.0}
    assert read.layer_weights["y"] == {"a": 1.5}


def test_text_becomes_valid_and_visible() -> None:
    assert clean_text("a\ud800b") == "a\ufffdb"
    assert clean_text("\U0001f600") == "\U0001f600"
    assert clean_text("\ud83d\ude00") == "\U0001f600"
    assert clean_text("x\u202ey\x00z\n\t") == "x⟨U+202E⟩y⟨U+0000⟩z\n\t"


def test_only_finite_numbers_are_numbers() -> None:
    assert number(3) == 3.0
    assert [number(value) for value in (float("nan"), float("inf"), True, "3", None, 10**400)] == [None] * 6
