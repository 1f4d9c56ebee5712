"""The page as a browser would parse it."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path

import pytest

from loralign.errors import OutputError
from loralign.report import load_run, render_page, render_report
from tests.report.conftest import OBJECTIVES, about, measurement, samples, score_set, training_step, write_lines
from tests.report.pages import HOSTILE, Page, check_inert


@pytest.fixture(scope="module")
def page(run_directory: Path) -> Page:
    return Page(render_page(load_run(run_directory)))


def test_every_section_has_its_chart(page: Page) -> None:
    assert list(page.figures()) == [
        "plot-attenuation", "plot-weights", "plot-distortion", "plot-layers", "plot-layers-relative",
        "plot-cosine-full", "plot-cosine-accessible", "plot-cosine-euclidean", "plot-losses", "plot-scores",
    ]  # fmt: skip
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert set(page.figures()) <= ids
    assert {a["href"] for tag, a in page.elements if tag == "a"} <= {f"#{name}" for name in ids}


def test_the_headline_comes_first(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.index("h1") < tags.index("table") < tags.index("h2")


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert "src" not in attributes
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_the_policy_names_exactly_the_scripts_of_the_page(page: Page) -> None:
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert len(page.code()) == 2
    for script in page.code():
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_the_page_stays_near_five_megabytes(run_directory: Path) -> None:
    assert len(render_page(load_run(run_directory)).encode()) < 5.3e6


def test_charts_have_axis_titles_and_one_colour_per_objective(page: Page) -> None:
    figures = page.figures()
    for key in ("plot-attenuation", "plot-weights", "plot-losses"):
        layout = figures[key]["layout"]
        axes = [value for name, value in layout.items() if name.startswith("yaxis")]
        assert all(axis["title"]["text"] for axis in axes)
        assert any(
            value.get("title", {}).get("text") == "optimiser step"
            for n, value in layout.items()
            if n.startswith("xaxis")
        )
        shades = {trace["name"]: trace["line"]["color"] for trace in figures[key]["data"] if "name" in trace}
        assert shades == {name: f"var(--objective-{index})" for index, name in enumerate(OBJECTIVES, start=1)}


def test_refinement_is_marked_on_every_time_axis(page: Page) -> None:
    for key in ("plot-attenuation", "plot-weights", "plot-distortion", "plot-losses"):
        assert [shape["x0"] for shape in page.figures()[key]["layout"]["shapes"]] == [30]


def test_the_layer_map_is_kind_by_depth(page: Page) -> None:
    trace = page.figures()["plot-layers"]["data"][0]
    assert len(trace["z"]) == len(trace["y"]) == 7
    assert trace["x"] == list(range(30))
    assert [a["text"] for a in page.figures()["plot-layers"]["layout"]["annotations"]] == list(OBJECTIVES)


def test_every_colour_variable_is_defined(page: Page, run_directory: Path) -> None:
    text = render_page(load_run(run_directory))
    used = {part.split(")")[0] for part in json.dumps(page.figures()).split("var(")[1:]}
    assert used
    for name in used:
        assert f"{name}:" in text


def hostile_run(directory: Path, evil: str) -> Path:
    """A run in which every string is ``evil``: names, model, layers, settings and texts."""
    record = measurement(0, random.Random(0))
    for key in ("attenuation", "weights"):
        record[key] = {evil: 0.3, "b": 0.4}
    record |= {
        "objectives": [evil, "b"],
        "skipped": evil,
        "layer_attenuation": {evil: {evil: 0.1}, f"{evil}.3.q": {evil: 0.2}},
    }
    event = {"kind": "refinement", "step": 1, "mode": evil, "layers": [{"name": evil, "spectrum": [1.0]}]}
    event |= {"attenuation_before": {evil: 0.1}, "attenuation_after": {evil: 0.2}}
    step = training_step(1, random.Random(0))
    step["objectives"] = {evil: step["objectives"]["helpful"]}
    write_lines(directory / "geometry.jsonl", [record, event, step])
    scores = score_set((0.5, 0.6, 0.7), 0.1)
    scores["objectives"] = {evil: scores["objectives"]["helpful"]}
    description = about() | {"objectives": [evil, "b"], "target_weights": {evil: 1.0}}
    description |= dict.fromkeys(("model", "weighting", "status", "seed"), evil)
    description |= {
        "command": [evil],
        "config": {evil: evil},
        "environment": {evil: [evil]},
        "data": {"train": {"counts": {evil: 3}}},
    }
    texts = [dict.fromkeys(samples()[0], evil)]
    for name, value in (("run.json", description), ("scores.json", {"after": scores}), ("samples.json", texts)):
        (directory / name).write_text(json.dumps(value), encoding="utf-8")
    return directory


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_inert(own_run: Path, evil: str, page: Page) -> None:
    found = Page(render_page(load_run(hostile_run(own_run, evil))))
    check_inert(found, page)
    assert found.text.count("alert(1)") >= 10 * ("alert(1)" in evil)


def test_long_answers_are_cut_and_said(own_run: Path) -> None:
    (own_run / "samples.json").write_text(
        json.dumps([samples()[0] | dict.fromkeys(("prompt", "before", "after"), "y" * 7000)]), encoding="utf-8"
    )
    found = Page(render_page(load_run(own_run)))
    assert "1000 more characters are not shown" in found.text
    assert "y" * 6001 not in found.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("geometry.jsonl", "so there is no map of the layers"),
        ("scores.json", "This run has no scores before or after"),
        ("samples.json", "This run has no sample answers"),
    ],
)
def test_a_missing_file_leaves_a_sentence(own_run: Path, name: str, told: str) -> None:
    (own_run / name).unlink()
    assert told in Page(render_page(load_run(own_run))).text


def test_a_run_that_is_hardly_begun_has_a_page(own_run: Path) -> None:
    for file in own_run.iterdir():
        file.unlink()
    (own_run / "run.json").write_text('{"version": 1}', encoding="utf-8")
    found = Page(render_page(load_run(own_run)))
    assert found.figures() == {}
    assert "not measured" in found.text


def test_names_without_digits_and_sixteen_objectives(own_run: Path) -> None:
    names = [f"objective {index}" for index in range(16)]
    record = measurement(0, random.Random(0)) | {"objectives": names, "attenuation": dict.fromkeys(names, 0.3)}
    record["layer_attenuation"] = {layer: dict.fromkeys(names, 0.3) for layer in ("lm_head", "projector.up")}
    write_lines(own_run / "geometry.jsonl", [record, record | {"step": 1}])
    (own_run / "run.json").write_text(json.dumps(about() | {"objectives": names}), encoding="utf-8")
    figures = Page(render_page(load_run(own_run))).figures()
    assert figures["plot-layers-loose"]["layout"]["yaxis"]["ticktext"] == ["lm_head", "projector.up"]
    looks = {(t["line"]["color"], t["line"]["dash"]) for t in figures["plot-attenuation"]["data"]}
    assert len(looks) == 16


def test_the_report_is_written_whole_or_not_at_all(run_directory: Path, tmp_path: Path) -> None:
    run = load_run(run_directory)
    target = tmp_path / "report.html"
    render_report(run, target)
    assert target.read_text(encoding="utf-8").endswith("</html>")
    blocked = tmp_path / "file"
    blocked.write_text("here", encoding="utf-8")
    with pytest.raises(OutputError):
        render_report(run, blocked / "report.html")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
