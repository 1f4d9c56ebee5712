from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loralign.cli import main
from tests.evaluation.models import CHATML
from tests.models.tiny_models import write_model
from tests.training.runs import pairs


class Outcome:
    """Exit status and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def assert_refused(result: Outcome, *words: str) -> None:
    """One line on the error stream that holds all words, status 2, and no stack trace."""
    assert result.code == 2, result.out + result.err
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl")


@pytest.fixture
def loralign(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        captured = capfd.readouterr()
        return Outcome(int(ending.value.code or 0), captured.out, captured.err)

    return run


def with_template(directory: Path) -> Path:
    """Give the tokenizer in ``directory`` a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    return directory


def write_pairs(path: Path, count: int = 24, **changes: Any) -> Path:
    """Labelled pairs as JSONL; ``changes`` replace fields of the second row."""
    rows = pairs(count).to_list()
    rows[1].update(changes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SMALL = (
    "--max_steps", "2", "--lora_r", "4", "--lora_target_modules", "q_proj", "down_proj", "--measure_every", "1",
    "--samples", "3", "--save_steps", "1",
)  # fmt: skip
