from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loralign.data.driftcheck import build_driftcheck
from loralign.errors import ConfigError, DataError
from loralign.experiments.cell import Cell
from loralign.experiments.measuring import Measures, measure_cell
from tests.evaluation.tasks.files import sst2_file
from tests.models.tiny_models import write_adapter


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_tasks_that_cannot_be_scored_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    reviews = f"sst2={sst2_file(tmp_path)}"
    Measures(tasks=(reviews,)).check()
    with pytest.raises(ConfigError, match="sst9"):
        Measures(tasks=(f"sst9={tmp_path}",)).check()
    with pytest.raises(ConfigError, match="named twice"):
        Measures(tasks=(reviews, reviews)).check()
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        Measures(tasks=(f"sst2={tmp_path / 'missing.jsonl'}",)).check()
    with pytest.raises(ConfigError, match="task_limit"):
        Measures(tasks=(reviews,), task_limit=0)


def test_a_cell_is_measured_with_its_dtype_and_what_cannot_be_followed_is_told(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_driftcheck(["builtin"], tmp_path / "set", safe=60, unsafe=60, seed=0)
    measures = Measures(driftcheck=str(tmp_path / "set"), prompts=2, tasks=(f"sst2={sst2_file(tmp_path)}",))
    settings = {"model": str(model), "dtype": "float16", "load_in_4bit": True, "revision": None, "seed": 3}
    place = tmp_path / "cell"
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    write_adapter(place / "run" / "adapter", base)
    with caplog.at_level(logging.WARNING, logger="loralign"):
        measure_cell(Cell("adapt", settings, measures.to_json()), place, tmp_path / "store")
    assert [record.args for record in caplog.records if record.name == "loralign.experiments.measuring"] == [
        ("load_in_4bit", True, "the unquantised base")
    ]
    for run in (place / "check", place / "check" / "baseline"):
        assert read(run / "run.json")["options"]["dtype"] == "float16"
        assert read(run / "run.json")["environment"]["base_dtype"] == "float16"
    tasks = read(place / "tasks.json")
    assert tasks["environment"]["base_dtype"] == "float16"
    # The cell's own seed would draw other solved examples than that of its neighbours.
    assert tasks["settings"]["seed"] == 0
    assert list(tasks["arms"]) == ["adapter"]
