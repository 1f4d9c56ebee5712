"""The page of many runs as a parser sees it."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest

from loralign.errors import OutputError
from loralign.report.runs.formats import render_csv, render_json, render_markdown
from loralign.report.runs.page import render_story, story_page
from loralign.report.runs.story import Story, load_story
from tests.report.adaptation_runs import write_json
from tests.report.pages import Page
from tests.report.runs.hostile import ACTIONS, write_hostile


@pytest.fixture(scope="module")
def page(story: Story) -> Page:
    return Page(story_page(story))


def test_every_part_of_the_story_has_its_chart(page: Page) -> None:
    assert list(page.figures()) == [
        "plot-pareto-0", "plot-pareto-1", "plot-pareto-2", "plot-pareto-3", "plot-categories-0", "plot-categories-2",
        "plot-layers-0", "plot-layers-1", "plot-layers-2", "plot-curve-preference-loss", "plot-curve-task-loss",
        "plot-curve-drift", "plot-curve-refusals",
    ]  # fmt: skip
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(page.figures()) <= set(ids)
    assert {a["href"] for tag, a in page.elements if tag == "a"} <= {f"#{name}" for name in ids}


def test_the_headline_comes_before_the_table_and_the_charts(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.index("h1") < tags.index("table") < tags.index("h2")


def test_every_model_has_a_line_of_its_own_in_the_headline(page: Page, story: Story) -> None:
    lines = [attributes for _, attributes in page.elements if attributes.get("class") == "told"]
    assert len(lines) == len(story.told) > 1


def test_nothing_is_loaded_and_only_the_page_s_own_scripts_run(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert len(page.code()) == 3
    for script in page.code():
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_bars_have_intervals_and_belong_to_an_arm_and_a_category(page: Page) -> None:
    figure = page.figures()["plot-categories-0"]
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert len(bars) == 4 * 6
    assert {(bar["meta"]["arm"], bar["meta"]["category"]) for bar in bars} == {
        (arm, category) for arm in range(1, 5) for category in range(6)
    }
    plain = next(bar for bar in bars if bar["meta"] == {"arm": 2, "category": 0})
    assert plain["x"] == [60.0]
    assert plain["error_x"]["array"] == pytest.approx([10.0])
    assert plain["hovertext"] == "plain, violence: 60.0\u00a0% [50.0, 70.0]"


def test_the_layer_maps_are_kind_by_depth_for_each_objective_and_for_energy(page: Page) -> None:
    figures = page.figures()
    assert len(figures["plot-layers-0"]["data"]) == 3
    for key in ("plot-layers-0", "plot-layers-1", "plot-layers-2"):
        assert len(figures[key]["data"][0]["z"]) == 7
        assert figures[key]["data"][0]["x"] == list(range(30))


def test_the_ten_worst_regressions_are_folded_and_veiled(page: Page, story: Story) -> None:
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "regression"]
    assert len(folds) == len(story.regressions) == 10
    assert not any("open" in attributes for attributes in folds)
    veils = [a for _, a in page.elements if a.get("class") == "veil"]
    assert len(veils) == 10
    assert all("inert" in attributes for attributes in veils)
    boxes = [a for tag, a in page.elements if tag == "input" and a.get("class") == "reveal"]
    labels = {a["for"] for tag, a in page.elements if tag == "label" and "for" in a}
    assert [a["id"] for a in boxes] == [f"reveal-{number}" for number in range(1, 11)]
    assert {a["id"] for a in boxes} == labels


def test_a_summary_of_a_regression_does_not_tell_its_prompt(page: Page, story: Story) -> None:
    text = story_page(story)
    for fold in text.split('<details class="regression"')[1:]:
        assert "How would one do" not in fold.partition("</summary>")[0]


def test_configuration_environment_and_commands_are_there(page: Page) -> None:
    for told in ("plain.run.rank", "guarded.guard.drift_budget", "loralign align --config", "loralign driftcheck run"):
        assert told in page.text


def test_one_run_has_a_page(many: Path) -> None:
    for name in ("align", "plain", "guarded", "repaired", "checks/plain", "tasks.json"):
        found = Page(story_page(load_story([many / name])))
        assert "<h1" in story_page(load_story([many / name]))
        assert found.text


def test_a_run_without_anything_has_sentences_in_place_of_charts(tmp_path: Path) -> None:
    write_json(tmp_path, "run.json", {"version": 1, "kind": "adapt"})
    found = Page(story_page(load_story([tmp_path])))
    assert found.figures() == {}
    for told in ("Nothing was scored yet", "no trade-off to draw", "No answers were judged", "No run recorded its"):
        assert told in found.text


def test_every_colour_variable_is_defined(page: Page, story: Story) -> None:
    text = story_page(story)
    used = {part.split(")")[0] for part in json.dumps(page.figures()).split("var(")[1:]}
    assert used
    assert all(f"{name}:" in text for name in used)


@pytest.mark.parametrize("evil", ACTIONS, ids=range(len(ACTIONS)))
def test_hostile_text_is_inert(tmp_path: Path, evil: str, page: Page) -> None:
    story = load_story([write_hostile(tmp_path / "runs", evil)])
    assert story.regressions
    assert len(story.arms) >= 4
    found = Page(story_page(story))
    assert len(found.code()) == 3
    assert found.code()[1:] == page.code()[1:] or found.code()[0] == page.code()[0]
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in page.elements} | {"aside", "li", "ul", "p"}
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not str(attributes.get("href", "#")).startswith("javascript")
    figures = json.dumps(found.figures())
    assert "<" not in figures.replace("<br>", "").replace("<extra></extra>", "")
    for character in ("\x00", "\x1b", "\u202e", "\ud800"):
        assert character not in found.text
    # Nothing of it stops the other forms either.
    json.loads(render_json(story))
    render_csv(story).encode()
    markdown = render_markdown(story)
    shown = [line for line in markdown.replace("\\<", "").splitlines() if not line.startswith("    ")]
    assert not [line for line in shown if "<" in line]  # what is indented is code


def test_a_line_of_a_megabyte_is_cut_and_said(tmp_path: Path) -> None:
    text = story_page(load_story([write_hostile(tmp_path / "runs", "x")]))
    assert "more characters are not shown" in text
    assert len(text.encode()) < 6e6


def test_the_page_is_written_whole_or_not_at_all(story: Story, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    render_story(story, target)
    assert target.read_text(encoding="utf-8").endswith("</html>")
    (tmp_path / "file").write_text("here", encoding="utf-8")
    with pytest.raises(OutputError):
        render_story(story, tmp_path / "file" / "report.html")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
