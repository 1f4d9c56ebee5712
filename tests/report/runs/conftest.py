from __future__ import annotations

from pathlib import Path

import pytest

from loralign.report.runs.story import Story, load_story
from tests.report.runs.many import write_many


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start, plain, guarded and repaired, each checked and task-scored; tests must not change it."""
    return write_many(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="session")
def story(many: Path) -> Story:
    return load_story([many])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The same for a test that damages it."""
    return write_many(tmp_path / "runs")
