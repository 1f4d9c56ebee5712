from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loralign.errors import ConfigError
from loralign.runs.task_scores import read_task_samples, score_tasks
from tests.cli.conftest import with_template
from tests.evaluation.tasks.files import sst2_file
from tests.models.tiny_models import write_adapter, write_model


def test_an_adapter_is_scored_alone_as_it_is_beside_its_base(tmp_path: Path) -> None:
    model = with_template(write_model(tmp_path / "tiny"))
    adapter = write_adapter(tmp_path / "tuned", AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    tasks = [f"sst2={sst2_file(tmp_path)}"]
    alone, both = tmp_path / "alone.json", tmp_path / "both.json"
    options: dict[str, Any] = {"samples": True, "show_progress": False}
    run = score_tasks(str(adapter), None, tasks, alone, base=False, **options)
    assert list(run.arms) == ["adapter"]
    assert [row.differences for row in run.rows] == [{}] * len(run.rows)
    other = score_tasks(str(adapter), None, tasks, both, **options)
    assert list(other.arms) == ["base", "adapter"]
    assert run.arms["adapter"] == other.arms["adapter"] != other.arms["base"]
    assert read_task_samples(alone) == read_task_samples(both)
    with pytest.raises(ConfigError, match="name the adapter"):
        score_tasks(str(model), None, tasks, tmp_path / "none.json", base=False)
