"""The demo: stages in order, each done once, whatever interrupts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loralign.errors import ConfigError, OutputError
from loralign.runs import demo
from loralign.runs.demo import DemoOptions, Stage, demo_stages, run_demo
from tests.cli.conftest import assert_refused


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that only leave a mark; the names of those that were acted on. The third is interrupted once."""
    acted: list[str] = []

    def stages(output: Path, options: DemoOptions) -> list[Stage]:
        def act(name: str) -> Any:
            def once() -> None:
                acted.append(name)
                if name == "c" and acted.count("c") == 1:
                    raise KeyboardInterrupt
                (output / name).write_text("x")

            return once

        return [Stage(f"stage {name}", 1.0, output / name, act(name)) for name in "abcd"]

    monkeypatch.setattr(demo, "demo_stages", stages)
    monkeypatch.setattr(demo, "load_story", lambda runs: "story")
    monkeypatch.setattr(demo, "render_story", lambda story, target: target.write_text("page"))
    return acted


def test_goes_on_with_the_stage_that_was_interrupted(staged: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", tell=told.append)
    assert staged == ["a", "b", "c"]
    story, report = run_demo(tmp_path / "demo", tell=told.append)
    assert staged == ["a", "b", "c", "c", "d"]
    assert (story, report.read_text()) == ("story", "page")
    assert told[0] == "[1/4] stage a"
    assert told[3:5] == ["[1/4] stage a: done before", "[2/4] stage b: done before"]
    assert told[-1].startswith("[4/4] stage d (")


def test_remaining_time_counts_what_is_left() -> None:
    assert demo._remaining(60.0, 0.0, 10.0) == ""
    assert demo._remaining(60.0, 2.0, 6.0) == " (about 3 min left)"
    assert demo._remaining(10.0, 2.0, 6.0) == " (less than a minute left)"


def test_other_options_or_another_content_are_refused(staged: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", DemoOptions(seed=1), tell=str)
    with pytest.raises(OutputError, match="other options"):
        run_demo(tmp_path / "demo", DemoOptions(seed=2), tell=str)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(OutputError, match="something else"):
        run_demo(tmp_path / "mine", tell=str)
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(ConfigError, match="adapt_steps"):
        DemoOptions(adapt_steps=0)


def test_every_run_that_is_reported_is_made_by_a_stage(tmp_path: Path) -> None:
    """A check that no stage makes, or a stage whose result is not reported, would be missed here."""
    made = {stage.result for stage in demo_stages(tmp_path, DemoOptions())}
    reported = {Path(one) for one in demo._reported(tmp_path)}
    directories = {path if path.parent == tmp_path else path.parent for path in made}
    assert reported <= directories
    assert {path.name for path in directories - reported} == UNREPORTED


UNREPORTED = {"taught", "fisher", "prompts", "lesson"}


def test_a_bad_number_is_refused_in_one_line(loralign: Any, tmp_path: Path) -> None:
    assert_refused(loralign("demo", "--align-steps", "0"), "--align-steps")
    (tmp_path / "here").write_text("x")
    assert_refused(loralign("demo", "-o", "here"), "here", "something else")


@pytest.mark.slow
def test_the_whole_story_on_a_tiny_model(loralign: Any, model: Path, tmp_path: Path) -> None:
    steps = ("--teach-steps", "2", "--align-steps", "2", "--adapt-steps", "2", "--scored", "26", "--answered", "13")
    ran = loralign("demo", "--model", model, "-o", "out", *steps, "--max-length", "700")
    assert ran.code == 0, ran.out + ran.err
    assert "repaired" in ran.out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for arm in ("aligned", "plain", "guarded", "repaired"):
        assert arm in page
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != "report.html"}
    again = loralign("demo", "--model", model, "-o", "out", *steps, "--max-length", "700")
    assert again.out.count("done before") == len(demo_stages(tmp_path / "out", DemoOptions()))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["options"]["adapt_steps"] == 2
