"""``loralign report`` and ``loralign compare``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from loralign.cli import compare, report, show
from loralign.errors import ConfigError, LoralignError, OutputError, StateError

app = typer.Typer()
report.register(app)
compare.register(app)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def refused(kind: type[LoralignError], *arguments: str | Path) -> str:
    """The one line of a fault; it came before anything was written."""
    result = run(*arguments)
    assert isinstance(result.exception, kind), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_many_runs_become_one_page(many: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "report.html"
    result = run("report", many / "plain", many / "guarded", "-o", target)
    assert result.exit_code == 0, result.output
    text = target.read_text(encoding="utf-8")
    assert "report of 3 models" in text
    assert [entry.name for entry in target.parent.iterdir()] == ["report.html"]


def test_without_a_file_the_page_goes_beside(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", many / "plain").exit_code == 0
    assert os.listdir(tmp_path) == ["report.html"]  # noqa: PTH208


def test_other_forms_go_to_the_screen_or_to_a_file(many: Path, tmp_path: Path) -> None:
    shown = run("report", many / "plain", "--format", "json")
    assert json.loads(shown.output)["format"] == "loralign.report"
    for suffix, start in (("json", "{"), ("csv", "arm,role,"), ("md", "Against align,")):
        target = tmp_path / f"x.{suffix}"
        assert run("report", many / "plain", "-o", target).exit_code == 0
        assert target.read_text(encoding="utf-8").startswith(start)
    named = tmp_path / "table.txt"
    assert run("report", many / "plain", "-o", named, "--format", "csv").exit_code == 0
    assert named.read_text(encoding="utf-8").startswith("arm,role,")


def test_the_terminal_has_the_same_table(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show.console, "_width", 200)
    with show.console.capture() as captured:
        result = run("compare", many / "plain", many / "guarded", many / "tasks.json")
    assert result.exit_code == 0, result.output
    text = captured.get()
    for told in ("local_sst2 acc", "0.830 [0.806, 0.854]", "plain", "guarded", "Against align"):
        assert told in text


def test_a_place_without_a_run_is_refused_and_nothing_written(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    assert "does not exist" in refused(StateError, "report", tmp_path / "absent", "-o", target)
    (tmp_path / "empty").mkdir()
    assert "holds nothing that can be reported" in refused(StateError, "compare", tmp_path / "empty")
    assert not target.exists()


def test_an_unknown_format_is_refused(many: Path) -> None:
    assert "'pdf' is no format" in refused(ConfigError, "report", many / "plain", "--format", "pdf")


def test_a_report_never_replaces_what_it_is_made_from(own: Path) -> None:
    tasks = own / "tasks.json"
    before = tasks.read_bytes()
    assert "is part of what" in refused(OutputError, "report", tasks, "-o", tasks)
    assert "is part of what" in refused(OutputError, "report", own, "-o", tasks)
    assert "is part of what" in refused(OutputError, "report", own, "-o", own / "plain" / "scores.json")
    assert "is a directory" in refused(OutputError, "report", own, "-o", own / "plain")
    assert tasks.read_bytes() == before


def test_what_was_measured_goes_into_the_model_card(many: Path, tmp_path: Path) -> None:
    """A second report replaces the first one's part; the rest of the card stays, and no path goes in."""
    adapter = many / "repaired"
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nWords of my own.\n", encoding="utf-8")
    for _ in range(2):
        result = run("report", many / "plain", many / "repaired", "-o", tmp_path / "x.html", "--card", adapter)
        assert result.exit_code == 0, result.output
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: mit\n---\n\n# Mine\n\nWords of my own.\n\n<!-- measured by loralign -->\n")
    assert text.count("## What was gained and lost") == 1
    assert text.count("| repaired") >= 1
    assert "### Commands" not in text
    assert str(many) not in text


def test_a_card_is_begun_where_there_is_none(many: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(many / "repaired", adapter, ignore=shutil.ignore_patterns("README.md"))
    assert run("report", many / "repaired", "-o", tmp_path / "x.html", "--card", adapter).exit_code == 0
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nbase_model: ")
    assert "library_name: peft" in text


def test_a_card_belongs_to_an_adapter(many: Path, tmp_path: Path) -> None:
    line = refused(OutputError, "report", many / "plain", "-o", tmp_path / "x.html", "--card", tmp_path)
    assert "has no adapter" in line
    assert not (tmp_path / "x.html").exists()
