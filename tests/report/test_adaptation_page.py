"""The page of an adaptation as a browser would parse it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from loralign.errors import OutputError
from loralign.report import load_adaptation, render_adaptation
from loralign.report.adaptation_page import adaptation_page
from loralign.report.guard_records import GuardStep
from tests.report.adaptation_runs import (
    BUDGET,
    about,
    category,
    guard_records,
    samples,
    scores,
    share,
    warning,
    write_json,
)
from tests.report.conftest import write_lines
from tests.report.pages import HOSTILE, Page, check_inert


@pytest.fixture(scope="module")
def page(adaptation_directory: Path) -> Page:
    return Page(adaptation_page(load_adaptation(adaptation_directory)))


def test_every_section_has_its_chart(page: Page) -> None:
    assert list(page.figures()) == [
        "plot-drift", "plot-share", "plot-penalty", "plot-loss", "plot-safety", "plot-refusals",
        "plot-subspace-energy", "plot-subspace-rank",
    ]  # fmt: skip
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert set(page.figures()) <= ids
    assert {a["href"] for tag, a in page.elements if tag == "a"} <= {f"#{name}" for name in ids}


def test_headline_and_scores_come_first(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.index("h1") < tags.index("table") < tags.index("h2")
    assert page.text.index("within the budget of 0.0500") < page.text.index("1.55 [1.46, 1.64]")


def test_the_page_is_self_contained_and_runs_only_its_own_scripts(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attributes
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert len(page.code()) == 2
    for script in page.code():
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_drift_stands_against_its_budget_and_its_multiplier(page: Page) -> None:
    figure = page.figures()["plot-drift"]
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert list(traces) == ["drift, KL(start ‖ now)", "log-probability lost", "budget", "multiplier"]
    assert traces["drift, KL(start ‖ now)"]["x"] == [-1, *range(4, 60, 5)]
    assert traces["budget"]["y"] == [BUDGET, BUDGET]
    assert traces["multiplier"]["yaxis"] == "y2"
    assert traces["multiplier"]["x"] == list(range(60))


def test_held_back_loss_stands_beside_the_trained_one(page: Page) -> None:
    traces = {trace.get("name"): trace for trace in page.figures()["plot-loss"]["data"]}
    assert list(traces["held back"]["x"]) == list(range(4, 60, 5))


def test_every_chart_over_time_has_titles_and_the_same_axis(page: Page) -> None:
    ranges = set()
    for key in ("plot-drift", "plot-share", "plot-penalty", "plot-loss", "plot-refusals"):
        layout = page.figures()[key]["layout"]
        axes = {name: value for name, value in layout.items() if name[1:].startswith("axis")}
        assert all(axis["title"]["text"] for name, axis in axes.items() if name.startswith("y"))
        assert any(axis.get("title", {}).get("text") == "optimiser step" for axis in axes.values())
        ranges |= {tuple(axis["range"]) for name, axis in axes.items() if name.startswith("x")}
    assert len(ranges) == 1
    low, high = ranges.pop()
    assert low < -1
    assert high > 59


def test_the_penalty_is_drawn_on_a_logarithmic_axis_without_its_zeros(page: Page) -> None:
    figure = page.figures()["plot-penalty"]
    assert figure["layout"]["yaxis"]["type"] == "log"
    geodesic = next(trace for trace in figure["data"] if trace["name"].startswith("geodesic"))
    assert geodesic["y"][0] is None
    assert all(value > 0 for trace in figure["data"] for value in trace["y"] if value is not None)
    assert len(figure["data"]) == 5


def test_a_new_estimate_and_a_warning_of_one_step_share_a_mark(page: Page) -> None:
    for key in ("plot-drift", "plot-share", "plot-penalty", "plot-loss", "plot-refusals"):
        layout = page.figures()[key]["layout"]
        assert [shape["x0"] for shape in layout["shapes"]] == [39]
        assert [note["text"] for note in layout["annotations"]] == ["re-estimated, warning"]
        assert layout["annotations"][0]["xanchor"] == "right"  # away from the near end
        assert "similarity 0.810<br>warning at step 39" in layout["annotations"][0]["hovertext"]


def test_the_update_has_no_share_before_there_is_one(page: Page) -> None:
    assert page.figures()["plot-share"]["data"][0]["x"][0] == 4


def test_refusals_are_shown_over_all_and_by_category(page: Page) -> None:
    layout = page.figures()["plot-safety"]["layout"]
    assert layout["yaxis"]["ticktext"][:3] == ["all unsafe prompts", "all safe prompts", "violence"]
    assert layout["yaxis"]["ticktext"][-1] == "privacy (safe)"
    assert len(layout["yaxis"]["ticktext"]) == 9
    legend = [trace["name"] for trace in page.figures()["plot-safety"]["data"] if "name" in trace]
    assert legend == ["before", "after"]


def test_the_subspace_is_kind_by_depth(page: Page) -> None:
    for key in ("plot-subspace-energy", "plot-subspace-rank"):
        trace = page.figures()[key]["data"][0]
        assert len(trace["z"]) == len(trace["y"]) == 7
        assert trace["x"] == list(range(30))
    assert page.figures()["plot-subspace-rank"]["data"][0]["z"][1][0] == 11


def test_only_unsafe_samples_are_folded_and_hide_their_prompt(page: Page) -> None:
    folds = [
        attributes for tag, attributes in page.elements if tag == "details" and attributes.get("class") == "sample"
    ]
    assert ["open" in attributes for attributes in folds] == [False, True, True]
    assert page.text.count(samples()[0]["prompt"]) == 1  # in the fold only
    assert page.text.count(samples()[1]["prompt"]) == 2  # in the summary too


def test_warnings_configuration_and_command_are_there(page: Page) -> None:
    for told in (
        "lower its rank",
        "guard.lambda_alignment",
        "loralign adapt runs/align/adapter --data 'alpaca task.jsonl' --drift_budget 0.05",
        "half agreement",
        "how many output directions of a layer are held. Rows are module kinds",
    ):
        assert told in page.text


def test_every_colour_variable_is_defined(page: Page, adaptation_directory: Path) -> None:
    text = adaptation_page(load_adaptation(adaptation_directory))
    used = {part.split(")")[0] for part in json.dumps(page.figures()).split("var(")[1:]}
    assert used
    for name in used:
        assert f"{name}:" in text


def hostile_adaptation(directory: Path, evil: str) -> Path:
    """An adaptation in which every string is ``evil``, and every name that the format leaves open."""
    records: list[dict[str, Any]] = [record for record in guard_records(10) if record["kind"] != "warning"]
    records += [dict.fromkeys(("code", "message", "fix"), evil) | {"kind": "warning", "step": 8}]
    records += [{"kind": "guard", "step": 11, "penalty": {evil: 1.0, "total": 2.0}, "weights": {evil: 1.0}}]
    write_lines(directory / "guard.jsonl", records)
    both = [category(evil, "unsafe", 3, 0.9), category("b", "unsafe", 3, 0.9), category(evil, evil, 3, 0.9)]
    judged = {"refusal": share(0.5), "over_refusal": share(0.5), "categories": both}
    after = judged | {"refusal": share(0.1), "categories": [category(evil, "unsafe", 3, 0.1), *both[1:]]}
    write_json(directory, "scores.json", scores() | {"safety_before": judged, "safety_after": after})
    description = about() | dict.fromkeys(("model", "guard", "status", "seed"), evil)
    layers = {evil: {"rank": 3, "energy": 0.5, evil: 1.0}, f"{evil}.3.q": {"rank": 3, "energy": 0.5}}
    description |= {
        "command": [evil],
        "subspace": {evil: evil, "kind": evil, "layers": layers},
        "config": {evil: evil, "guard": {"guard_mode": evil, "drift_budget": 0.01}},
        "environment": {evil: [evil]},
        "data": {"train": evil, evil: 3},
    }
    write_json(directory, "run.json", description)
    write_json(directory, "samples.json", [dict.fromkeys(samples()[0], evil), samples()[0] | {"prompt": evil}])
    return directory


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_inert(own_adaptation: Path, evil: str, page: Page) -> None:
    found = Page(adaptation_page(load_adaptation(hostile_adaptation(own_adaptation, evil))))
    check_inert(found, page)
    assert found.text.count("alert(1)") >= 20 * ("alert(1)" in evil)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("guard.jsonl", "The probe was not measured in this run"),
        ("scores.json", "This run has no scores before or after"),
        ("samples.json", "This run has no sample answers"),
    ],
)
def test_a_missing_file_leaves_a_sentence(own_adaptation: Path, name: str, told: str) -> None:
    (own_adaptation / name).unlink()
    found = Page(adaptation_page(load_adaptation(own_adaptation)))
    assert told in found.text
    assert f"The run wrote no {name}" in found.text


def test_a_run_that_is_hardly_begun_has_a_page(own_adaptation: Path) -> None:
    for file in own_adaptation.iterdir():
        file.unlink()
    write_json(own_adaptation, "run.json", {"version": 1, "kind": "adapt"})
    found = Page(adaptation_page(load_adaptation(own_adaptation)))
    assert found.figures() == {}
    assert "This run had no subspace" in found.text


def test_a_plain_run_has_drift_and_no_word_of_a_guard(own_adaptation: Path) -> None:
    records = [record for record in guard_records() if record["kind"] in ("train", "probe")]
    for record in records:
        for name in ("share", "budget", "multiplier"):
            record.pop(name, None)
    write_lines(own_adaptation / "guard.jsonl", records)
    write_json(own_adaptation, "run.json", about() | {"guard": "none", "subspace": None, "config": {}})
    write_json(own_adaptation, "scores.json", scores() | {"share": None, "safety_before": None, "safety_after": None})
    found = Page(adaptation_page(load_adaptation(own_adaptation)))
    assert list(found.figures()) == ["plot-drift", "plot-loss"]
    assert [trace["name"] for trace in found.figures()["plot-drift"]["data"]] == [
        "drift, KL(start ‖ now)", "log-probability lost"
    ]  # fmt: skip
    assert "No answers of this run were judged" in found.text
    assert "No warnings were recorded" in found.text


def test_a_projection_shows_its_strength(adaptation_directory: Path) -> None:
    run = load_adaptation(adaptation_directory)
    steps = tuple(GuardStep(step, 2.0 + step, strength=(2.0 + step) / (3.0 + step)) for step in range(60))
    projected = dataclasses.replace(run, mode="project", guard_steps=steps)
    figures = Page(adaptation_page(projected)).figures()
    assert "plot-penalty" not in figures
    assert figures["plot-drift"]["data"][-1]["name"] == "strength of projection"


def test_layers_outside_of_blocks_have_a_map_and_every_number_a_table(own_adaptation: Path) -> None:
    layers = {"lm_head": {"rank": 4, "energy": 0.5, "top": 0.1}}
    write_json(own_adaptation, "run.json", about() | {"subspace": {"layers": layers}})
    found = Page(adaptation_page(load_adaptation(own_adaptation)))
    assert found.figures()["plot-subspace-energy"]["layout"]["yaxis"]["ticktext"] == ["lm_head"]
    assert "top" in found.text


def test_long_runs_are_thinned(own_adaptation: Path) -> None:
    write_lines(own_adaptation / "guard.jsonl", [*guard_records(4000), warning(4001)])
    found = Page(adaptation_page(load_adaptation(own_adaptation)))
    for figure in found.figures().values():
        assert all(len(trace.get("x") or ()) <= 1502 for trace in figure["data"])


def test_the_page_is_written_whole_or_not_at_all(adaptation_directory: Path, tmp_path: Path) -> None:
    run = load_adaptation(adaptation_directory)
    target = tmp_path / "report.html"
    render_adaptation(run, target)
    assert target.read_text(encoding="utf-8").endswith("</html>")
    blocked = tmp_path / "file"
    blocked.write_text("here", encoding="utf-8")
    with pytest.raises(OutputError):
        render_adaptation(run, blocked / "report.html")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
