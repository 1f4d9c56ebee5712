"""What the page of an alignment says of the guard that held the base's alignment meanwhile."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from loralign.report import headline, load_adaptation, load_run, render_page
from loralign.report.adaptation_page import adaptation_page
from loralign.report.alignment_records import Run
from loralign.report.guard_outcome import kept_rows
from loralign.report.guard_words import guard_sentences
from tests.report.adaptation_runs import BUDGET, guard_records, warning, write_json
from tests.report.conftest import write_lines
from tests.report.guarded_runs import KEPT, guarded_about, write_guarded
from tests.report.pages import HOSTILE, Page, check_inert

CHARTS = (
    "plot-drift", "plot-share", "plot-penalty", "plot-safety", "plot-refusals", "plot-subspace-energy",
    "plot-subspace-rank",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(guarded_directory: Path) -> Run:
    return load_run(guarded_directory)


@pytest.fixture(scope="module")
def page(run: Run) -> Page:
    return Page(render_page(run))


@pytest.fixture
def own_guarded(tmp_path: Path) -> Path:
    """A guarded alignment that a test may damage."""
    return write_guarded(tmp_path / "my-guarded-run")


def change(directory: Path, name: str, **fields: Any) -> None:
    """Replace fields of a JSON file; ``None`` removes one."""
    content = json.loads((directory / name).read_text(encoding="utf-8")) | fields
    write_json(directory, name, {key: value for key, value in content.items() if value is not None})


def test_the_guard_has_its_charts_beside_those_of_the_geometry(page: Page, run: Run) -> None:
    assert run.notes == ()
    figures = page.figures()
    assert tuple(key for key in figures if key in CHARTS) == CHARTS
    assert {"plot-attenuation", "plot-losses", "plot-scores"} <= set(figures)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"guard", "subspace", "warnings"} <= ids
    assert {a["href"] for tag, a in page.elements if tag == "a"} <= {f"#{name}" for name in ids}


def test_both_kinds_of_runs_draw_a_guard_alike(page: Page, adaptation_directory: Path) -> None:
    """The synthetic adaptation has the same records, so its charts and warnings are the very same."""
    other = Page(adaptation_page(load_adaptation(adaptation_directory)))
    for key in CHARTS:
        assert page.figures()[key] == other.figures()[key]
    for sentence in guard_sentences(load_adaptation(adaptation_directory)):
        assert sentence in page.text


def test_drift_stands_in_headline_table_and_facts(page: Page, run: Run) -> None:
    told = (
        "On what had to survive, with its alignment held by penalties, it drifted 0.0431 nats per token from the start "
        "(within the budget of 0.0500). It refuses 97\u00a0% of unsafe prompts (99\u00a0% before) and 14\u00a0% of "
        "safe prompts (36\u00a0% before)."
    )
    assert headline(run).endswith(told)
    assert page.text.index(told) < page.text.index("0.0431 [0.0371, 0.0491]") < page.text.index("What LoRA's geometry")
    assert "auto (penalties)" in page.text
    assert run.guarded is not None
    assert run.guarded.budget == BUDGET
    assert kept_rows(run.guarded)[0][:3] == ("drift (nats per token)", "0", "0.0431 [0.0371, 0.0491]")


def test_a_run_without_a_guard_has_no_word_of_one(run_directory: Path) -> None:
    run = load_run(run_directory)
    assert run.guarded is None
    assert run.notes == ()
    found = Page(render_page(run))
    assert not set(CHARTS) & set(found.figures())
    assert not {"guard", "subspace", "warnings"} & {attributes.get("id") for _, attributes in found.elements}
    assert "guard" not in found.text.lower()
    assert "survive" not in found.text


def test_an_old_run_tells_the_drift_of_its_last_probe(own_guarded: Path) -> None:
    """Scores had no drift once; what the page says then comes from the log."""
    change(own_guarded, "scores.json", **dict.fromkeys(KEPT))
    change(own_guarded, "run.json", data={})
    run = load_run(own_guarded)
    assert run.guarded is not None
    assert run.guarded.scores is None
    assert run.scores["after"].objectives
    assert headline(run).endswith(
        "drifted 0.0429 nats per token from the start (within the budget of 0.0500), by the last probe."
    )
    found = Page(render_page(run))
    assert "plot-drift" in found.figures()
    assert "What had to survive, with bootstrap intervals" not in found.text


def test_a_guard_that_left_no_log_is_said_to(own_guarded: Path) -> None:
    (own_guarded / "guard.jsonl").unlink()
    run = load_run(own_guarded)
    assert run.notes == ("The run wrote no guard.jsonl, so nothing is known of its course.",)
    assert "The probe was not measured in this run" in Page(render_page(run)).text


def test_a_running_run_has_a_guard_without_scores(own_guarded: Path) -> None:
    (own_guarded / "scores.json").unlink()
    change(own_guarded, "run.json", status="running")
    write_lines(own_guarded / "guard.jsonl", [{"kind": "probe", "step": -1, "kl": 0.0}])
    run = load_run(own_guarded)
    assert "drifted" not in headline(run).partition("had to survive")[2]
    assert list(Page(render_page(run)).figures()).count("plot-drift") == 1


def test_the_log_alone_is_enough(own_guarded: Path) -> None:
    change(own_guarded, "run.json", subspace=None)
    found = Page(render_page(load_run(own_guarded)))
    assert "plot-drift" in found.figures()
    assert "This run had no subspace" in found.text


def test_a_guard_that_only_measured_is_told_apart(run: Run) -> None:
    assert run.guarded is not None
    measured = dataclasses.replace(run, guarded=dataclasses.replace(run.guarded, mode="measure", budget=None))
    assert "with a guard that only measured, it drifted 0.0431" in headline(measured)


def test_names_of_marks_that_would_meet_stand_on_lines_of_their_own(own_guarded: Path) -> None:
    again = {"kind": "reestimate", "similarity": 0.9, "least": 0.8}
    records = [one for one in guard_records() if one["kind"] not in ("reestimate", "warning")]
    for steps, expected in (((10, 15), [0, 13]), ((10, 55), [0, 0]), ((20, 40), [0, 13]), ((2, 25, 58), [0, 0, 13])):
        write_lines(own_guarded / "guard.jsonl", [*records, *(again | {"step": step} for step in steps)])
        found = Page(render_page(load_run(own_guarded))).figures()["plot-drift"]["layout"]["annotations"]
        assert [note["yshift"] for note in found] == expected


def test_warnings_are_sentences_marks_and_a_table(own_guarded: Path) -> None:
    write_lines(own_guarded / "guard.jsonl", [*guard_records(), warning(49, "over_budget"), warning(55, "over_budget")])
    found = Page(render_page(load_run(own_guarded)))
    assert "Warning, at step 39: two estimates of the alignment subspace agree by 0.81 only" in found.text
    assert "Warning, 2 times, first at step 49" in found.text
    assert [shape["x0"] for shape in found.figures()["plot-drift"]["layout"]["shapes"]] == [39, 49, 55]


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_in_a_guard_is_inert(own_guarded: Path, evil: str, page: Page) -> None:
    records: list[dict[str, Any]] = [*guard_records(10), dict.fromkeys(("code", "message", "fix"), evil)]
    records[-1] |= {"kind": "warning", "step": 9}
    records += [{"kind": "guard", "step": 11, "penalty": {evil: 1.0, "total": 2.0}, "weights": {evil: 1.0}}]
    write_lines(own_guarded / "guard.jsonl", records)
    layers = {evil: {"rank": 3, "energy": 0.5, evil: 1.0}, f"{evil}.3.q": {"rank": 3, "energy": 0.5}}
    config = {"run": {"guard": evil}, "guard": {"guard_mode": evil, "drift_budget": 0.01}}
    write_json(
        own_guarded, "run.json", guarded_about() | {"subspace": {evil: evil, "layers": layers}, "config": config}
    )
    found = Page(render_page(load_run(own_guarded)))
    check_inert(found, page)
    assert found.text.count("alert(1)") >= 8 * ("alert(1)" in evil)


@pytest.mark.parametrize("wrong", [None, 3, "text", [], {}, [[]], {"a": {"b": None}}])
def test_values_of_the_wrong_type_count_as_absent(own_guarded: Path, wrong: Any) -> None:
    kinds = {record["kind"]: record for record in guard_records()}
    write_lines(
        own_guarded / "guard.jsonl",
        [dict.fromkeys(one, wrong) | {"kind": kind, "step": 4} for kind, one in kinds.items()],
    )
    write_json(
        own_guarded, "run.json", guarded_about() | {"subspace": {"layers": wrong}, "config": wrong, "data": wrong}
    )
    write_json(own_guarded, "scores.json", dict.fromkeys(KEPT, wrong))
    assert Page(render_page(load_run(own_guarded))).text
