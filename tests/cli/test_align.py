from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.conftest import SMALL

FILES = {
    "adapter",
    "geometry.jsonl",
    "pair_scores.safetensors",
    "report.html",
    "run.json",
    "samples.json",
    "scores.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, data):
    """One whole run, shared by the tests below."""
    from loralign.runs import parse_recipe, run_alignment

    directory = tmp_path_factory.mktemp("run") / "out"
    recipe = parse_recipe(
        [
            "--model",
            str(model),
            "--data",
            str(data),
            "--validation_data",
            str(data),
            "--output_dir",
            str(directory),
            *SMALL,
        ]
    )
    return run_alignment(recipe)


def test_a_run_leaves_adapter_scores_and_report(finished):
    names = {path.name for path in finished.directory.iterdir()}
    assert names >= FILES
    assert not [name for name in names if name.startswith(".")]
    run = json.loads((finished.directory / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["data"]["train"]["counts"] == {"helpful": 12, "honest": 6, "harmless": 6}
    scores = json.loads((finished.directory / "scores.json").read_text())
    assert set(scores) == {"version", "before", "after", "reference", "difference"}
    page = (finished.directory / "report.html").read_text()
    assert "harmless" in page
    assert "plot-drift" not in page
    assert not (finished.directory / "sample_scores.parquet").exists()
    samples = json.loads((finished.directory / "samples.json").read_text())
    assert [sample["objective"] for sample in samples] == ["harmless", "helpful", "honest"]


def test_the_adapter_is_an_ordinary_one(finished, model):
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(finished.adapter))
    changed = adapted(ids).logits
    assert not torch.allclose(changed, plain)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, changed, rtol=1e-4, atol=1e-5)
    tensors = load_file(finished.adapter / "adapter_model.safetensors")
    assert not [name for name in tensors if ".ref." in name]
    card = (finished.adapter / "README.md").read_text()
    assert card.startswith("---\nbase_model:")
    for word in ("helpful", "honest", "harmless", "library_name: peft", "fingerprint"):
        assert word in card


def test_evaluate_agrees_with_the_runs_own_scores(finished, loralign, data):
    result = loralign(
        "evaluate", finished.adapter, "--data", data, "--max-length", "256", "--dtype", "float32", "--json"
    )
    assert result.code == 0
    scores = json.loads(result.out)
    own = json.loads((finished.directory / "scores.json").read_text())
    for name in ("helpful", "honest", "harmless"):
        left = scores["after"]["objectives"][name]["measures"]
        right = own["after"]["objectives"][name]["measures"]
        for measure in ("accuracy_normalised", "margin", "kl_policy_reference"):
            assert left[measure]["value"] == pytest.approx(right[measure]["value"], abs=0.05)
    table = loralign("evaluate", finished.adapter, "--data", data)
    assert "Difference" in table.out


def test_diagnose_an_adapter_and_a_model(finished, loralign, data, model):
    found = loralign("diagnose", finished.adapter, "--data", data, "--pairs", "12", "--json")
    assert found.code == 0, found.err
    measured = json.loads(found.out)
    gamma = measured["measurement"]["attenuation"]
    assert set(gamma) == {"helpful", "honest", "harmless"}
    assert all(0 < value <= 1 for value in gamma.values())
    assert sum(measured["weights"]["norm"].values()) == pytest.approx(3)
    assert measured["sentences"]
    fresh = loralign("diagnose", model, "--data", data, "--rank", "2", "--pairs", "6")
    assert fresh.code == 0, fresh.err
    assert "What LoRA reaches" in fresh.out


@pytest.mark.parametrize("mode", ["condition", "balanced"])
def test_refine_writes_an_adapter_of_the_same_function(finished, loralign, data, model, tmp_path, mode):
    words = ("--data", data, "--pairs", "12") if mode == "balanced" else ()
    result = loralign("refine", finished.adapter, "-o", tmp_path / "refined", "--mode", mode, *words, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    ids = torch.tensor([[5, 6, 7, 8]])
    logits = []
    for adapter in (finished.adapter, tmp_path / "refined"):
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        logits.append(PeftModel.from_pretrained(base, str(adapter))(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    assert report["function_change"] <= 1e-3**0.5 + 1e-6
    if mode == "balanced":
        assert set(report["attenuation_after"]) == {"helpful", "honest", "harmless"}
    again = loralign("refine", finished.adapter, "-o", tmp_path / "refined")
    assert again.code == 2


def test_resume_of_a_finished_run_changes_nothing(finished, loralign, data, model):
    before = load_file(finished.adapter / "adapter_model.safetensors")
    words = ("--model", model, "--data", data, "--validation_data", data, "--output_dir", finished.directory)
    result = loralign("align", *words, *SMALL, "--resume", "--json")
    assert result.code == 0, result.err
    after = load_file(finished.adapter / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_help_and_models(loralign):
    assert "loralign align --data" in loralign("align", "--help").out
    assert "--gradient_accumulation_steps" in loralign("align", "--help", "--all").out
    for command in ("evaluate", "diagnose", "refine", "models", "demo"):
        assert loralign(command, "--help").code == 0
    names = [model["name"] for model in json.loads(loralign("models", "--json").out)]
    assert "smollm2-135m-instruct" in names
    assert loralign("--version").out.startswith("loralign ")
