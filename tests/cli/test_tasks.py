from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.cli.conftest import assert_refused
from tests.evaluation.tasks.files import gsm8k_file, mmlu_file, solved_facts_file, sst2_file
from tests.models.tiny_models import write_adapter


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return write_adapter(tmp_path_factory.mktemp("adapter") / "tuned", base)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_base_adapter_and_merged_are_scored_and_written(loralign, model, adapter, tmp_path):
    result = loralign(
        "tasks", model, "--adapter", adapter, "--merged", "--tasks", f"sst2={sst2_file(tmp_path)}",
        f"gsm8k={gsm8k_file(tmp_path)}", f"mmlu={mmlu_file(tmp_path)}", "--examples",
        f"mmlu={solved_facts_file(tmp_path)}", "--max-new-tokens", "6", "--limit", "4", "--dtype", "float32", "-o",
        "out/tasks.json", "--samples",
    )  # fmt: skip
    assert result.code == 0, result.err
    for word in ("local_sst2", "local_gsm8k", "local_mmlu", "merged", "written to out/tasks.json"):
        assert word in result.out
    written = read(tmp_path / "out" / "tasks.json")
    assert (written["format"], written["version"]) == ("loralign.tasks", 1)
    assert (written["model"], written["start"], written["adapter"]) == (str(model), str(model), str(adapter))
    assert list(written["arms"]) == ["base", "adapter", "merged"]
    assert {(one["task"], one["n"], one["fewshot"]) for one in written["arms"]["adapter"]["scores"]} == {
        ("local_sst2", 4, 0), ("local_gsm8k", 4, 0), ("local_mmlu", 4, 2),
    }  # fmt: skip
    assert written["settings"]["limit"] == 4
    assert written["environment"]["base_dtype"] == "float32"
    for row in written["comparison"]:
        assert set(row["differences"]) == {"adapter", "merged"}
        assert row["differences"]["adapter"]["stderr"] is not None
    samples = [json.loads(line) for line in (tmp_path / "out" / "tasks.samples.jsonl").read_text().splitlines()]
    # Two readings of each sum.
    assert len(samples) == 3 * (4 + 2 * 4 + 4)
    first = {one["arm"]: one["response"] for one in samples if (one["task"], one["document"]) == ("local_sst2", 0)}
    assert first["adapter"] == pytest.approx(first["merged"], abs=1e-3)
    assert first["adapter"] != pytest.approx(first["base"], abs=1e-2)


def test_a_model_alone_and_json(loralign, model, tmp_path):
    result = loralign("tasks", model, "--tasks", f"sst2={sst2_file(tmp_path)}", "-o", "tasks.json", "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["comparison"]
    assert list(row["scores"]) == ["base"]
    assert row["differences"] == {}
    assert not (tmp_path / "tasks.samples.jsonl").exists()


def test_an_adapter_named_as_the_model_is_scored_against_its_base(loralign, model, adapter, tmp_path):
    words = ("--tasks", f"sst2={sst2_file(tmp_path)}", "--limit", "2", "--dtype", "float32")
    assert loralign("tasks", adapter, *words, "-o", "one.json").code == 0
    assert loralign("tasks", model, "--adapter", adapter, *words, "-o", "two.json").code == 0
    assert read(tmp_path / "one.json")["arms"] == read(tmp_path / "two.json")["arms"]


def test_faults_are_one_line_and_nothing_is_written(loralign, model, tmp_path):
    reviews = f"sst2={sst2_file(tmp_path)}"
    out = ("-o", "tasks.json")
    assert_refused(loralign("tasks", model, "--tasks", "boolq", *out), "task boolq", "data are not here")
    assert_refused(loralign("tasks", model, "--tasks", "bolq", *out), "bolq", "boolq")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "bolq", *out), "bolq", "boolq")
    assert_refused(loralign("tasks", model, "--tasks", "sst2=nowhere.jsonl", *out), "nowhere.jsonl")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "--merged", *out), "merged", "adapter")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "--examples", "x", *out), "NAME=PATH")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "--examples", "mmlu=x", *out), "mmlu")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "--limit", "0", *out), "limit")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "--batch-size", "many", *out), "batch_size")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "--dtype", "int7", *out), "int7")
    assert_refused(loralign("tasks", "./nowhere", "--tasks", reviews, *out), "./nowhere")
    assert_refused(loralign("tasks", model, "--tasks", reviews, "-o", tmp_path), "directory")
    assert_refused(loralign("tasks", model, "--tasks", reviews), "output")
    assert_refused(loralign("tasks", model, *out), "tasks")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sst2.jsonl"]


def test_a_file_that_exists_is_kept_unless_it_is_to_be_replaced(loralign, model, tmp_path):
    (tmp_path / "tasks.json").write_text("weeks of work")
    words = ("tasks", model, "--tasks", f"sst2={sst2_file(tmp_path)}", "--limit", "1", "-o", "tasks.json")
    assert_refused(loralign(*words), "tasks.json", "--overwrite")
    assert (tmp_path / "tasks.json").read_text() == "weeks of work"
    assert loralign(*words, "--overwrite").code == 0
    assert read(tmp_path / "tasks.json")["format"] == "loralign.tasks"
