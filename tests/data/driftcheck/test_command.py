from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loralign.cli.driftcheck_build import build, parse_parts
from loralign.data.driftcheck import load_driftcheck
from loralign.errors import ConfigError, DataError

Write = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr("loralign.cli.show.console.width", 200)
    app = typer.Typer()
    app.command("build")(build)

    def invoke(*words: str | Path) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None:
            raise result.exception
        return result.output

    return invoke


def test_options_reach_the_set_and_the_report_is_printed(run: Callable[..., str], write: Write, tmp_path: Path) -> None:
    safe = write(*({"prompt": word} for word in ("alpha", "beta?", "gamma", "", "Alpha")), name="a.jsonl")
    mmlu = write({"question": "Which one?", "choices": ["this", "that"]}, name="b.jsonl")
    output = run(
        "-o", tmp_path / "set", "--source", f"safe={safe}", "--source", f"mmlu={mmlu}", "--safe", "3", "--unsafe", "0",
        "--seed", "4", "--parts", "train=0,probe=0.34,test=0.66",
    )  # fmt: skip
    built = load_driftcheck(tmp_path / "set")
    assert sorted(prompt.part for prompt in built.prompts) == ["probe", "test", "test"]
    assert json.loads((tmp_path / "set" / "build.json").read_text())["seed"] == 4
    for words in (safe, mmlu, "exact duplicate", "empty", "safe: general", built.fingerprint[:12], "3 prompts"):
        assert words in output, output


def test_faults_are_ours(run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        run("-o", tmp_path / "set", "--source", "nowhere.jsonl")
    with pytest.raises(ConfigError, match="is no share"):
        run("-o", tmp_path / "set", "--parts", "train")
    assert list(tmp_path.iterdir()) == []


def test_parts_as_they_are_written() -> None:
    assert parse_parts("train=0.5, probe = .1,test=4e-1") == {"train": 0.5, "probe": 0.1, "test": 0.4}


@pytest.mark.parametrize("text", ["", "train", "train=", "train=half", "=1", "test=0.5,test=0.5", "test=nan"])
def test_parts_that_say_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="is no share of a part"):
        parse_parts(text)
