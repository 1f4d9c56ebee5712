from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import loralign, with_template
from tests.cli.guarding import QUICK, write_alignment, write_task
from tests.models.tiny_models import write_model

__all__ = ["loralign"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "task.jsonl")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alignment(tmp_path_factory.mktemp("kept") / "kept.jsonl")


@pytest.fixture(scope="session")
def adapting(model: Path, task: Path, kept: Path) -> list[str]:
    """The words of a short adaptation, after ``loralign adapt``."""
    return [str(model), "--data", str(task), "--alignment_data", str(kept), *QUICK]
