"""Each fault gives one line with value, place and fix, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from tests.cli.conftest import SMALL, assert_refused, with_template, write_pairs
from tests.models.tiny_models import write_adapter, write_model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chosen": []}, ("pairs.jsonl:2", "chosen")),
        ({"objective": "kindness"}, ("pairs.jsonl:2", "kindness")),
        ({"objective": None}, ("pairs.jsonl:2", "objective")),
        ({"rejected": 7}, ("pairs.jsonl:2", "rejected")),
        ({"chosen": [{"role": "assistant", "content": "x"}], "rejected": [{"role": "assistant", "content": "x"}]},
         ("pairs.jsonl:2", "identical")),
    ],
)  # fmt: skip
def test_faulty_rows(loralign, model, tmp_path, changes, words):
    path = write_pairs(tmp_path / "pairs.jsonl", **changes)
    objectives = ("--objectives", "helpful", "honest", "harmless")
    result = loralign("align", "--model", model, "--data", path, "--output_dir", "out", *objectives, *SMALL)
    assert_refused(result, *words)
    assert not (tmp_path / "out").exists()


def test_missing_column_and_empty_objective(loralign, model, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    assert_refused(
        loralign("align", "--model", model, "--data", "bare.jsonl", "--output_dir", "out"), "bare.jsonl", "chosen"
    )
    objectives = ("--objectives", "helpful", "honest", "harmless", "brave")
    assert_refused(loralign("align", "--model", model, "--data", data, "--output_dir", "out", *objectives), "brave")


def test_a_model_that_is_not_there(loralign, data):
    assert_refused(loralign("align", "--model", "./nowhere", "--data", data, "--output_dir", "out"), "./nowhere")
    assert_refused(loralign("align", "--model", "smollm2-135m-instrukt", "--data", data), "smollm2-135m-instruct")


def test_a_target_module_that_matches_nothing(loralign, model, data):
    result = loralign(
        "align", "--model", model, "--data", data, "--output_dir", "out", "--lora_target_modules", "q_prog"
    )  # fmt: skip
    assert_refused(result, "q_prog", "q_proj", "lora_target_modules")


def test_adapters_that_do_not_fit(loralign, model, data, tmp_path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    good = write_adapter(tmp_path / "good", base)

    def spoiled(name, change):
        directory = shutil.copytree(good, tmp_path / name)
        tensors = load_file(directory / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        return directory

    key = next(iter(load_file(good / "adapter_model.safetensors")))
    infinite = spoiled("infinite", lambda tensors: tensors[key].fill_(float("nan")))
    assert_refused(loralign("evaluate", infinite, "--data", data, "--model", model), "finite")
    narrow = spoiled("narrow", lambda tensors: tensors.update({key: tensors[key][:, :-1].contiguous()}))
    assert_refused(
        loralign("evaluate", narrow, "--data", data, "--model", model), key.split(".lora")[0].split("model.")[-1]
    )
    other = with_template(write_model(tmp_path / "other", hidden=64))
    assert_refused(loralign("evaluate", good, "--data", data, "--model", other), "other")
    pickled = shutil.copytree(good, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert_refused(loralign("evaluate", pickled, "--data", data, "--model", model), "adapter_model.bin")


def test_an_output_directory_in_use(loralign, model, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    words = ("align", "--model", model, "--data", data, "--output_dir", "out", *SMALL)
    assert_refused(loralign(*words), "out", "--overwrite")
    assert_refused(loralign(*words, "--overwrite"), "not left by an earlier run")
    # To resume a run without a checkpoint is to begin it anew, which clears the directory.
    assert_refused(loralign(*words, "--resume"), "not left by an earlier run")
    assert_refused(
        loralign("adapt", model, "--data", data, "--output_dir", "out", "--resume"), "not left by an earlier run"
    )
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_settings(loralign, tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 1.0e-4\n")
    assert_refused(loralign("align", "--config", "recipe.yaml"), "learning_rat", "recipe.yaml", "learning_rate")
    (tmp_path / "recipe.yaml").write_text("- a\n- b\n")
    assert_refused(loralign("align", "--config", "recipe.yaml"), "mapping")
    (tmp_path / "recipe.yaml").write_text("a: [1\n")
    assert_refused(loralign("align", "--config", "recipe.yaml"), "YAML")
    (tmp_path / "recipe.yaml").write_text("learning_rate: fast\n")
    assert_refused(loralign("align", "--config", "recipe.yaml"), "fast")
    for line, word in (("data:", "data"), ("lora_r:", "lora_r"), ("max_steps:", "max_steps")):
        (tmp_path / "recipe.yaml").write_text(f"{line}\n")
        assert_refused(loralign("align", "--config", "recipe.yaml"), f"recipe.yaml: {word}", "has no value")
    (tmp_path / "recipe.yaml").write_text("lora_r: [8, 16]\n")
    assert_refused(loralign("align", "--config", "recipe.yaml"), "lora_r", "several values where one belongs")
    assert_refused(loralign("align", "--config", "missing.yaml"), "missing.yaml")
    assert_refused(loralign("align", "--max_stepz", "3"), "max_stepz", "max_steps")
    assert_refused(loralign("align", "--weighting", "gei"), "did you mean 'geo'")
    assert_refused(loralign("align", "--target_weights", "honest"), "NAME=NUMBER")
    assert_refused(loralign("align", "--loss_type", "aot"), "aot")
    assert_refused(loralign("align", "--dtype", "int7"), "int7")
    assert_refused(loralign("evaluate"), "adapter")
    assert_refused(loralign("evaluat"), "evaluat")
    assert not (tmp_path / "runs").exists()


def test_a_yaml_recipe_is_overridden_by_flags(tmp_path):
    from loralign.runs import parse_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rate: 3.0e-4\nweighting: norm\ndata: [builtin]\ntarget_weights: [honest=2]\nmax_steps: 7\n"
    )
    recipe = parse_recipe(["--config", str(path), "--max_steps", "9"])
    assert recipe.training.learning_rate == 3e-4
    assert recipe.training.max_steps == 9
    assert recipe.geometry.weighting == "norm"
    assert recipe.target_weights() == {"honest": 2.0}
    assert recipe.settings()["training"]["max_steps"] == 9


def test_names_that_no_file_can_have(loralign, model, data):
    name = "x" * 300
    assert_refused(loralign("evaluate", name, "--data", data, "--model", model), "no such adapter directory")
    assert_refused(loralign("align", "--model", name, "--data", data, *SMALL), "no model named")
    assert_refused(loralign("align", "--model", model, "--data", name, *SMALL), "no such file or directory")
    assert_refused(loralign("align", "--model", model, "--data", f"{name}={name}.jsonl", *SMALL))


def test_what_a_run_needs_is_not_cleared_for_it(loralign, model, data, tmp_path):
    used = tmp_path / "mine"
    used.mkdir()
    (used / "run.json").write_text("{}")
    for name in ("kept.jsonl", "pairs-1.jsonl", "stay.jsonl", "recipe.yaml"):
        (used / name).write_text("{}")
    words = ("--model", model, "--output_dir", "mine", "--overwrite")
    for more in (
        ("adapt", "--data", data, "--alignment_data", "mine/kept.jsonl"),
        ("adapt", "--data", data, "--alignment_data", "unsafe=mine/kept.jsonl"),
        ("align", "--data", "a=mine/pairs-*.jsonl"),
        ("align", "--data", data, "--config", "mine/recipe.yaml"),
        ("adapt", "--data", data, "--config=mine/recipe.yaml"),
        ("align", "--data", data, "--guard", "auto", "--probe_data", "mine/kept.jsonl"),
        ("align", "--data", data, "--preservation_weight", "1", "--preservation_prompts", "mine/stay.jsonl"),
    ):
        assert_refused(loralign(*more, *words), "which the run needs")
    assert len(list(used.iterdir())) == 5


@pytest.mark.parametrize("command", ["align", "adapt"])
def test_several_gpus_in_one_process_are_refused_before_anything_is_loaded(command, loralign, tmp_path, monkeypatch):
    """TRL does not train there, and says so in a traceback once the model is loaded."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    data = ["--data", "task.jsonl"] if command == "adapt" else []
    result = loralign(command, "--model", "nowhere", *data, "--output_dir", "out")
    assert_refused(result, "2 GPUs are visible to one process", "CUDA_VISIBLE_DEVICES", "accelerate launch")
    assert not (tmp_path / "out").exists()
