from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loralign.guard import AlignmentSubspace
from loralign.lora import lora_layers
from tests.cli.conftest import SMALL, assert_refused
from tests.cli.guarding import FISHER, QUICK, write_alignment, write_task


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alignment(tmp_path_factory.mktemp("kept") / "kept.jsonl")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "task.jsonl")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, model: Path, task: Path, kept: Path) -> Any:
    """One whole guarded run, shared by the tests below."""
    from loralign.runs import parse_adapt_recipe, run_adaptation

    directory = tmp_path_factory.mktemp("run") / "out"
    words = [
        model,
        "--data",
        task,
        "--alignment_data",
        kept,
        "--output_dir",
        directory,
        "--drift_budget",
        "0.5",
        *QUICK,
    ]
    return run_adaptation(parse_adapt_recipe([str(word) for word in words]))


def test_a_guarded_run_leaves_adapter_scores_subspace_and_report(guarded: Any, model: Path) -> None:
    names = {path.name for path in guarded.directory.iterdir()}
    assert {"adapter", "subspace", "guard.jsonl", "run.json", "scores.json", "samples.json", "report.html"} <= names
    assert not [name for name in names if name.endswith(".partial")]
    run = json.loads((guarded.directory / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["subspace"]["layers"]["model.layers.0.self_attn.q_proj"]["rank"] >= 1
    scores = json.loads((guarded.directory / "scores.json").read_text())
    assert scores["drift"]["value"] > 0
    assert 0 < scores["share"] < 1
    assert scores["task_gain"]["value"] == pytest.approx(scores["task_before"]["value"] - scores["task_after"]["value"])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), guarded.adapter)
    assert any(bool(layer.B.any()) for layer in lora_layers(adapted))
    assert "drift" in (guarded.adapter / "README.md").read_text()
    assert AlignmentSubspace.load(guarded.directory / "subspace").layers


def test_all_commands_measure_drift_on_the_same_openings(
    loralign: Any, guarded: Any, kept: Path, tmp_path: Path
) -> None:
    """The log of a run, its scores and a repair's; whole responses, asked for, are another measure."""
    log = [json.loads(line) for line in (guarded.directory / "guard.jsonl").read_text().splitlines()]
    last = [record["kl"] for record in log if record["kind"] == "probe"][-1]
    scores = json.loads((guarded.directory / "scores.json").read_text())
    assert scores["drift"]["value"] == pytest.approx(last, rel=1e-4)
    assert json.loads((guarded.directory / "run.json").read_text())["data"]["probe_tokens"] == 2
    words = ("repair", guarded.adapter, "--subspace", guarded.directory / "subspace", "--probe", kept, "--json")
    words += ("--probe-samples", "6", "--max-length", "96", "--strength", "1")
    found = {}
    for tokens in (None, 0):
        flags = () if tokens is None else ("--probe-tokens", str(tokens))
        result = loralign(*words, *flags, "-o", f"out{tokens}")
        found[tokens] = json.loads(result.out.strip().splitlines()[-1])["drift_before"]["value"]
    assert found[None] == pytest.approx(last, rel=1e-4)
    assert found[0] != pytest.approx(last, rel=1e-2)


def test_plain_lora_is_one_flag_away(loralign: Any, model: Path, task: Path, kept: Path, tmp_path: Path) -> None:
    result = loralign(
        "adapt", model, "--data", task, "--alignment_data", kept, "--guard", "none", "--output_dir", "out", "--json",
        *QUICK,
    )  # fmt: skip
    assert result.code == 0, result.err
    printed = json.loads(result.out.strip().splitlines()[-1])
    assert printed["scores"]["share"] is None
    assert printed["scores"]["drift"]["value"] > 0
    assert not (tmp_path / "out" / "subspace").exists()


def test_an_adaptation_resumes(loralign: Any, model: Path, task: Path, kept: Path, tmp_path: Path) -> None:
    words = ("adapt", model, "--data", task, "--alignment_data", kept, *QUICK)
    assert loralign(*words, "--output_dir", "whole", "--json").code == 0
    assert loralign(*words, "--output_dir", "cut", "--json", "--max_steps", "2").code == 0
    again = loralign(*words, "--output_dir", "cut", "--json", "--resume", "true")
    assert again.code == 0, again.err
    whole, cut = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut"))
    # The schedule of the learning rate knows how long the run is, so only the first steps agree; it did go on.
    assert whole.keys() == cut.keys()
    steps = [json.loads(line) for line in (tmp_path / "cut" / "guard.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps if one["kind"] == "guard"] == [0, 1, 2]


def test_fisher_estimates_shows_and_draws(loralign: Any, model: Path, kept: Path, tmp_path: Path) -> None:
    words = ("fisher", model, "--data", kept, "-o", "found", *FISHER)
    result = loralign(*words)
    assert result.code == 0, result.err
    assert "q_proj" in result.out
    shown = loralign("fisher", "show", "found", "--json", "--picture", "energy.html")
    described = json.loads(shown.out.strip().splitlines()[-1])
    assert described["samples"] == 12
    assert described["response_tokens"] == 2
    assert set(described["layers"]) == set(AlignmentSubspace.load(tmp_path / "found").layers)
    assert "Fisher" in (tmp_path / "energy.html").read_text()
    whole = loralign("fisher", model, "--data", kept, "-o", "whole", "--response-tokens", "0", *FISHER)
    assert "whole responses" in whole.out
    assert (
        AlignmentSubspace.load(tmp_path / "whole").info.tokens > AlignmentSubspace.load(tmp_path / "found").info.tokens
    )


def test_adapter_as_start_is_merged(
    loralign: Any, guarded: Any, task: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second task on top of the first: the start is the merged model, which the new adapter names as its base."""
    monkeypatch.setenv("LORALIGN_CACHE", str(tmp_path / "cache"))
    assert loralign("fisher", guarded.adapter, "--data", kept, "-o", "found", *FISHER).code == 0
    result = loralign(
        "adapt", guarded.adapter, "--data", task, "--alignment_data", kept, "--guard", "found", "--output_dir", "out",
        "--json", *QUICK,
    )  # fmt: skip
    assert result.code == 0, result.err
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out/start")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out/start")
    weight = "model.layers.0.self_attn.q_proj.weight"
    start = AutoModelForCausalLM.from_pretrained(json.loads((guarded.directory / "run.json").read_text())["model"])
    merged = PeftModel.from_pretrained(start, guarded.adapter).merge_and_unload()
    torch.testing.assert_close(
        base.state_dict()[weight].float(), merged.state_dict()[weight].float(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("method", ["fisher", "random", "scale"])
def test_repair_lowers_drift_and_keeps_the_rank(
    loralign: Any, guarded: Any, kept: Path, task: Path, tmp_path: Path, method: str
) -> None:
    result = loralign(
        "repair", guarded.adapter, "--subspace", guarded.directory / "subspace", "--method", method, "--probe", kept,
        "--task", task, "-o", "out", "--json", "--judge", "2",
    )  # fmt: skip
    assert result.code == 0, result.err
    run = json.loads(result.out.strip().splitlines()[-1])
    assert run["drift_before"]["value"] > 0
    assert set(run["task"]) == set(run["safety"]) == {"base", "before", "after"}
    before, after = (load_file(path / "adapter_model.safetensors") for path in (guarded.adapter, tmp_path / "out"))
    assert {name: one.shape for name, one in before.items()} == {name: one.shape for name, one in after.items()}
    if method == "scale":
        assert run["drift_after"]["value"] == 0
    else:
        assert any(not torch.equal(before[name], after[name]) for name in before)
    shown = loralign("repair", guarded.adapter, "--subspace", guarded.directory / "subspace", "--strength", "0.5",
                     "--method", method, "--probe", kept, "-o", "out2")  # fmt: skip
    assert "strength 0.50" in shown.out


def test_repair_within_a_budget(loralign: Any, guarded: Any, kept: Path) -> None:
    words = ("repair", guarded.adapter, "--subspace", guarded.directory / "subspace", "--probe", kept, "--json")
    free = json.loads(loralign(*words, "--strength", "0", "-o", "a").out.strip().splitlines()[-1])
    whole = json.loads(loralign(*words, "--strength", "1", "-o", "b").out.strip().splitlines()[-1])
    budget = (free["report"]["drift_after"] + whole["report"]["drift_after"]) / 2
    found = json.loads(loralign(*words, "--drift-budget", str(budget), "-o", "c").out.strip().splitlines()[-1])
    assert found["report"]["met"] is True
    assert found["drift_after"]["value"] <= budget
    assert 0 < found["report"]["strength"] < 1


def test_repair_with_fewer_directions_takes_less_out(loralign: Any, guarded: Any, kept: Path) -> None:
    words = ("repair", guarded.adapter, "--subspace", guarded.directory / "subspace", "--probe", kept, "--json")
    reports = {}
    for name, more in (("one", ("--rank", "1")), ("whole", ()), ("beyond", ("--rank", "999"))):
        reports[name] = json.loads(loralign(*words, *more, "-o", name).out.strip().splitlines()[-1])["report"]
    changes = {name: sum(layer["change"] for layer in report["layers"]) for name, report in reports.items()}
    assert 0 < changes["one"] < changes["whole"]
    assert changes["beyond"] == changes["whole"]


class TestFaults:
    def test_nothing_is_cleared_that_the_run_needs(
        self, loralign: Any, guarded: Any, model: Path, task: Path, kept: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(guarded.directory, tmp_path / "runs")
        words = ("--data", task, "--alignment_data", kept, "--output_dir", "runs", "--overwrite", "true", *QUICK)
        assert_refused(loralign("adapt", model, *words, "--guard", "runs/subspace"), "runs/subspace", "needs")
        assert_refused(loralign("adapt", "runs/adapter", *words), "runs/adapter", "needs")
        assert (tmp_path / "runs/subspace").is_dir()
        # A fault that shows late leaves an earlier run as it was, too.
        assert_refused(loralign("adapt", "no-such-model", *words), "no-such-model")
        assert json.loads((tmp_path / "runs/run.json").read_text())["status"] == "finished"

    def test_task_files_of_two_forms(self, loralign: Any, model: Path, task: Path, kept: Path, tmp_path: Path) -> None:
        (tmp_path / "text.jsonl").write_text('{"text": "plain"}\n' * 4)
        words = ("--data", task, "text.jsonl", "--alignment_data", kept, "--output_dir", "out", *QUICK)
        assert_refused(loralign("adapt", model, *words), "text.jsonl", "completion")
        assert not (tmp_path / "out").exists()

    def test_budget_without_a_guard(self, loralign: Any, model: Path, task: Path, data: Path) -> None:
        words = ("--guard", "none", "--drift_budget", "0.1")
        assert_refused(loralign("adapt", model, "--data", task, *words), "needs a guard")
        assert_refused(loralign("align", "--model", model, "--data", data, *words), "needs a guard")

    def test_judged_prompts(self, loralign: Any, model: Path, data: Path) -> None:
        words = ("align", "--model", model, "--data", data)
        assert_refused(loralign(*words, "--judged_prompts", "4"), "judged_prompts", "--guard auto")
        assert_refused(loralign(*words, "--guard", "auto", "--judged_prompts=-1"), "judged_prompts", "-1")

    def test_recipe_values(self, loralign: Any, model: Path, task: Path, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text(f"data: {task}\nprobe_samples: 6.5\n")
        assert_refused(loralign("adapt", model, "--config", "recipe.yaml"), "probe_samples", "6.5")

    def test_no_refusals(self, loralign: Any, model: Path, task: Path, tmp_path: Path) -> None:
        only_safe = write_alignment(tmp_path / "safe.jsonl", labels=("safe",))
        result = loralign("adapt", model, "--data", task, "--alignment_data", only_safe, "--output_dir", "out", *QUICK)
        assert_refused(result, "no refusals", "safe.jsonl")
        assert not (tmp_path / "out").exists()
        assert_refused(loralign("fisher", model, "--data", only_safe, "-o", "out", *FISHER), "no refusals")
        assert not (tmp_path / "out").exists()

    def test_too_few_samples(self, loralign: Any, model: Path, kept: Path, tmp_path: Path) -> None:
        few = ("--target-modules", "q_proj", "--samples", "2", "--rank", "32")
        assert_refused(loralign("fisher", model, "--data", kept, "-o", "out", *few), "2 samples", "agree")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("budget", ["0", "-1", "nan"])
    def test_budget(self, loralign: Any, model: Path, task: Path, kept: Path, tmp_path: Path, budget: str) -> None:
        words = ("--data", task, "--alignment_data", kept, "--output_dir", "out", f"--drift_budget={budget}")
        assert_refused(loralign("adapt", model, *words, *QUICK), "budget")
        assert not (tmp_path / "out").exists()

    def test_repair_budget(self, loralign: Any, guarded: Any, kept: Path, tmp_path: Path) -> None:
        words = ("repair", guarded.adapter, "--subspace", guarded.directory / "subspace", "--probe", kept, "-o", "out")
        assert_refused(loralign(*words, "--drift-budget=-1"), "budget")
        assert_refused(loralign(*words, "--strength", "1.5"), "1.5")
        assert_refused(loralign(*words, "--rank", "0"), "--rank", "at least 1")
        assert_refused(loralign(*words, "--method", "fischer"), "fisher")
        assert not (tmp_path / "out").exists()

    def test_subspace_of_other_layers(self, loralign: Any, guarded: Any, model: Path, task: Path, kept: Path) -> None:
        words = ("--data", task, "--alignment_data", kept, "--guard", guarded.directory / "subspace", *QUICK)
        assert_refused(
            loralign("adapt", model, *words, "--output_dir", "a", "--lora_target_modules", "up_proj"), "covers none"
        )
        assert_refused(
            loralign("adapt", model, *words, "--output_dir", "b", "--lora_target_modules", "q_proj", "up_proj"),
            "lacks",
            "up_proj",
        )

    def test_altered_subspace(self, loralign: Any, guarded: Any, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(guarded.directory / "subspace", copy)
        file = copy / "subspace.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        assert_refused(loralign("fisher", "show", copy), "truncated or was altered")

    def test_no_task(self, loralign: Any, model: Path, kept: Path, tmp_path: Path) -> None:
        assert_refused(loralign("adapt", model, "--alignment_data", kept, "--output_dir", "out"), "--data")
        faulty = write_task(tmp_path / "task.jsonl", messages=[])
        assert_refused(loralign("adapt", model, "--data", faulty, "--output_dir", "out", *QUICK), "task.jsonl:2")
        assert not (tmp_path / "out").exists()

    def test_unknown_key(self, loralign: Any, model: Path, task: Path) -> None:
        assert_refused(
            loralign("adapt", model, "--data", task, "--lambda_aligment", "1"), "did you mean --lambda_alignment?"
        )


def test_probe_in_the_training_data_is_told(
    loralign: Any, model: Path, kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    (tmp_path / "task.jsonl").write_text(
        "".join(json.dumps({"messages": row["prompt"] + row["completion"]}) + "\n" for row in rows)
    )
    result = loralign(
        "adapt", model, "--data", "task.jsonl", "--alignment_data", kept, "--guard", "none", "--output_dir", "out",
        *QUICK,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "out/run.json").read_text())["data"]["probe_prompts_in_training"] >= 4
    assert any("are in the training data" in record.getMessage() for record in caplog.records)


def test_align_takes_a_guard(loralign: Any, model: Path, data: Path, kept: Path, tmp_path: Path) -> None:
    result = loralign(
        "align", "--model", model, "--data", data, "--validation_data", data, "--guard", "auto", "--alignment_data",
        kept, "--guard_mode", "project", "--probe_every", "1", "--judged_prompts", "4", "--output_dir", "out", *SMALL,
    )  # fmt: skip
    assert result.code == 0, result.err
    records = guard_log(tmp_path / "out")
    assert [one["share"] < 1e-9 for one in records if one["kind"] == "probe"] == [True] * 3
    assert (tmp_path / "out/subspace").is_dir()
    assert (tmp_path / "out/geometry.jsonl").is_file()
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert {"before", "after", "difference", "drift", "logprob_lost", "share"} <= set(scores)
    assert scores["drift"]["value"] == pytest.approx(records[-1]["kl"], rel=1e-4)
    assert scores["drift"]["value"] > 0
    assert len(scores["safety_before"]["refused"]) == len(scores["safety_after"]["refused"]) == 4
    samples = pq.read_table(tmp_path / "out/sample_scores.parquet").to_pydict()
    drifts = [after for name, after in zip(samples["measure"], samples["after"], strict=True) if name == "drift"]
    assert sum(drifts) / len(drifts) == pytest.approx(scores["drift"]["value"])
    assert samples["measure"].count("refused") == 4
    assert json.loads((tmp_path / "out/run.json").read_text())["data"]["probe"] == len(drifts)
    assert "What had to survive" in result.out
    assert 'data-plot="plot-drift"' in (tmp_path / "out/report.html").read_text()
    assert "drifted" in (tmp_path / "out/adapter/README.md").read_text().partition("What was held")[2]
    told = json.loads(loralign("report", "out", "--format", "json").out)
    aligned = next(arm for arm in told["arms"] if arm["name"] == "out")
    probed = [one for one in aligned["scores"] if one["ground"]["name"] == "own probe"]
    drift = next(one["metric"] for one in probed if one["quantity"]["key"] == "kl")
    assert drift["value"] == scores["drift"]["value"]


def test_a_guarded_alignment_of_an_adapter_is_scored_against_the_base(
    loralign: Any, model: Path, data: Path, kept: Path, tmp_path: Path
) -> None:
    """Continuing a fresh adapter, TRL keeps a second one as the reference; validation data there is none."""
    base = AutoModelForCausalLM.from_pretrained(model)
    fresh = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    fresh.save_pretrained(tmp_path / "fresh")
    result = loralign(
        "align", "--model", model, "--adapter", "fresh", "--data", data, "--guard", "auto", "--alignment_data", kept,
        "--probe_every", "1", "--output_dir", "out", *SMALL, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    printed = json.loads(result.out.strip().splitlines()[-1])
    assert printed["scores"] is None
    assert printed["kept"]["safety_after"] is None
    last = [one["kl"] for one in guard_log(tmp_path / "out") if one["kind"] == "probe"][-1]
    assert printed["kept"]["drift"]["value"] == pytest.approx(last, rel=1e-4)
    assert json.loads((tmp_path / "out/scores.json").read_text()) == {"version": 1, **printed["kept"]}
    assert "drift (nats per token)" in (tmp_path / "out/report.html").read_text()


def guard_log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "guard.jsonl").read_text().splitlines()]
