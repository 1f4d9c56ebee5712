"""What a run refuses before it loads a model or loses anything: to resume another run, and options that cannot work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from loralign.errors import ConfigError, LoralignError
from loralign.runs import parse_adapt_recipe, parse_recipe, run_adaptation, run_alignment
from loralign.runs.diagnose import diagnose
from loralign.runs.resuming import run_to_resume
from loralign.training.checkpoint import MANIFEST
from tests.cli.conftest import SMALL, assert_refused, write_pairs
from tests.cli.guarding import QUICK, write_alignment, write_task
from tests.models.tiny_models import write_adapter

WEIGHTS = "adapter_model.safetensors"
NOTHING_JUDGED = ("--judged_prompts", "0", "--samples", "0", "--guard", "none")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def other_weights(model: Path, target: Path) -> Path:
    """A model of the same shapes and tokenizer, but of other weights."""
    shutil.copytree(model, target)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    loaded.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """The directory of a whole alignment with its checkpoints; not to be changed by a test."""
    directory = tmp_path_factory.mktemp("finished") / "out"
    words = ["--model", model, "--data", data, "--output_dir", directory, *SMALL, "--samples", "0"]
    run_alignment(parse_recipe([str(word) for word in words]))
    return directory


@pytest.mark.parametrize("command", ["align", "adapt"])
def test_checkpoints_of_another_trainer_are_not_lost(
    command: str, loralign: Any, model: Path, data: Path, tmp_path: Path
) -> None:
    for step in (90, 500):
        (tmp_path / f"out/checkpoint-{step}").mkdir(parents=True)
        (tmp_path / f"out/checkpoint-{step}" / WEIGHTS).write_text("days of work")
    before = contents(tmp_path / "out")
    words = (command, "--model", model, "--data", data, "--output_dir", "out", "--resume")
    assert_refused(loralign(*words), "out", "checkpoint-500 of another trainer", "--overwrite")
    # Nor beside a run of loralign that was cut off.
    (tmp_path / "out/run.json").write_text(json.dumps({"status": "running", "kind": command}))
    assert_refused(loralign(*words), "checkpoint-500 of another trainer")
    (tmp_path / "out/run.json").unlink()
    assert contents(tmp_path / "out") == before


def test_a_finished_run_without_checkpoints_is_not_lost(
    loralign: Any, finished: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-*"))
    before = contents(tmp_path / "out")
    words = ("align", "--model", model, "--data", data, "--output_dir", "out", *SMALL, "--save_strategy", "no")
    assert_refused(loralign(*words, "--resume"), "out", "holds a finished run", "--overwrite")
    assert contents(tmp_path / "out") == before


class TestWhatMayBeBegunAnew:
    """A directory without a whole checkpoint, by its ``run.json`` and what lies beside it."""

    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        (tmp_path / "out").mkdir()
        return tmp_path / "out"

    def describe(self, out: Path, **about: Any) -> None:
        (out / "run.json").write_text(json.dumps(about))

    def test_a_run_that_was_cut_off(self, out: Path) -> None:
        self.describe(out, status="running")
        assert run_to_resume(out, "align") == {"status": "running"}
        # One of loralign's own that lacks a file is not another trainer's.
        (out / "checkpoint-1").mkdir()
        (out / "checkpoint-1" / MANIFEST).write_text('{"files": {"gone": 1}}')
        assert run_to_resume(out, "align") == {"status": "running"}

    def test_a_finished_run_whose_adapter_was_removed(self, out: Path) -> None:
        self.describe(out, status="finished", kind="adapt")
        assert run_to_resume(out, "adapt") is not None
        (out / "adapter").mkdir()
        with pytest.raises(LoralignError, match="finished run"):
            run_to_resume(out, "adapt")
        assert run_to_resume(out, "adapt", overwrite=True) is None

    @pytest.mark.parametrize("about", [{}, {"status": "done"}])
    def test_nothing_else(self, out: Path, about: dict[str, Any]) -> None:
        self.describe(out, **about)
        with pytest.raises(LoralignError, match="no run that was cut off"):
            run_to_resume(out, "align")

    def test_no_run_of_another_command(self, out: Path) -> None:
        self.describe(out, status="running", kind="adapt")
        with pytest.raises(LoralignError, match="of loralign adapt, not of loralign align"):
            run_to_resume(out, "align")

    def test_a_directory_that_is_not_there_or_empty(self, out: Path) -> None:
        assert run_to_resume(out / "none", "align") is None
        (out / ".run.json.tmp").write_text("{")
        assert run_to_resume(out, "align") is None


def test_an_alignment_is_resumed_by_the_same_run_only(
    loralign: Any, finished: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    before = contents(tmp_path / "out")
    flags = ("--output_dir", "out", *SMALL, "--samples", "0", "--resume")
    other = other_weights(model, tmp_path / "other")
    assert_refused(loralign("align", "--model", other, "--data", data, *flags), "other", "the same model")
    # The same name does not make it the same model.
    moved = shutil.copytree(model, tmp_path / "moved")
    fewer = write_pairs(tmp_path / "fewer.jsonl", count=18)
    assert_refused(loralign("align", "--model", moved, "--data", fewer, *flags), "the same data")
    weighted = ("--target_weights", "honest=2")
    assert_refused(loralign("align", "--model", moved, "--data", data, *flags, *weighted), "target_weights")
    assert contents(tmp_path / "out") == before
    # A longer run of the same model, wherever it lies now, at another pace.
    result = loralign(
        "align", "--model", moved, "--data", data, *flags, "--max_steps", "3", "--learning_rate", "1e-3",
        "--logging_steps", "1", "--max_length", "128",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / "out/checkpoint-3").is_dir()
    old, new = (load_file(place / "adapter" / WEIGHTS) for place in (finished, tmp_path / "out"))
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_another_model_in_the_place_of_the_first_is_told_from_it(
    loralign: Any, finished: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    other = other_weights(model, tmp_path / "other")
    run = json.loads((tmp_path / "out/run.json").read_text())
    run["identity"]["base"]["name"] = str(other)
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    flags = ("--data", data, "--output_dir", "out", *SMALL, "--samples", "0", "--resume")
    assert_refused(loralign("align", "--model", other, *flags), "has other weights")
    # Weights that cannot be compared, as those in 4 bits, leave the name to tell.
    run["identity"]["base"]["weights"] = None
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    assert_refused(loralign("align", "--model", model, *flags), "other", "the same model")


def test_an_adaptation_is_resumed_from_the_same_start_only(
    loralign: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALIGN_CACHE", str(tmp_path / "cache"))
    base = LlamaForCausalLM.from_pretrained(model)
    first = write_adapter(tmp_path / "first", base)
    other = write_adapter(tmp_path / "other", base, lora_alpha=16)
    task, kept = write_task(tmp_path / "task.jsonl"), write_alignment(tmp_path / "kept.jsonl")
    words = ("--data", task, "--alignment_data", kept, "--output_dir", "out", *QUICK, *NOTHING_JUDGED)
    run_adaptation(parse_adapt_recipe([str(word) for word in (first, *words)]))
    before = contents(tmp_path / "out")
    assert_refused(loralign("adapt", other, *words, "--resume"), "trains", "the same model")
    more = write_task(tmp_path / "more.jsonl", count=20)
    assert_refused(loralign("adapt", first, *words, "--data", more, "--resume"), "the same data")
    assert contents(tmp_path / "out") == before
    # The same adapter elsewhere, whose merged model is not in the cache.
    shutil.rmtree(tmp_path / "cache")
    moved = first.rename(tmp_path / "moved")
    result = loralign("adapt", moved, *words, "--resume")
    assert result.code == 0, result.err
    assert contents(tmp_path / "out/start") == {
        name.removeprefix("start/"): content for name, content in before.items() if name.startswith("start/")
    }


@pytest.mark.parametrize("command", ["align", "adapt"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--report_to", "wand"), ("report_to", "'wand'", "did you mean 'wandb'")),
        (("--report_to", "somewhere"), ("report_to", "'somewhere'", "wandb")),
        (("--report_to", "wandb"), ("report_to", "wandb is not installed")),
        (("--fp16", "true", "--use_cpu", "true"), ("fp16", "needs a GPU")),
        (("--truncation_mode", "keep_middle"), ("truncation_mode", "'keep_middle'")),
        pytest.param(
            ("--truncation_mode", "keep_end"),
            ("truncation_mode", "'keep_end'"),
            marks=pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning"),
        ),
    ],
)
def test_options_that_cannot_work_are_refused_first(
    command: str, flags: tuple[str, ...], words: tuple[str, ...], loralign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    assert_refused(loralign(command, "--model", "no/such", "--data", "none.jsonl", *flags), *words)


@pytest.mark.parametrize(("flag", "value"), [("--chat_template_path", "chat.jinja"), ("--eos_token", "<end>")])
def test_what_would_change_the_training_texts_alone_is_refused(flag: str, value: str, loralign: Any) -> None:
    result = loralign("adapt", "no/such", "--data", "none.jsonl", flag, value)
    assert_refused(result, flag.removeprefix("--"), value, "save it with the tokenizer")


def test_integrations_that_are_there_are_taken() -> None:
    assert parse_recipe(["--report_to", "tensorboard"]).training.report_to == ["tensorboard"]
    assert parse_recipe(["--report_to", "none"]).training.report_to == []


def test_an_alignment_evaluates_while_it_trains(loralign: Any, model: Path, data: Path, tmp_path: Path) -> None:
    words = (
        "align",
        "--model",
        model,
        "--data",
        data,
        "--output_dir",
        "out",
        *SMALL,
        "--samples",
        "0",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
    )
    assert_refused(loralign(*words), "eval_strategy", "--validation_data")
    assert not (tmp_path / "out").exists()
    result = loralign(*words, "--validation_data", data)
    assert result.code == 0, result.err
    state = json.loads((tmp_path / "out/checkpoint-2/trainer_state.json").read_text())
    assert [one["step"] for one in state["log_history"] if "eval_loss" in one] == [1, 2]


def test_a_diagnosis_has_nothing_to_evaluate_on(model: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        diagnose(str(model), [str(data)], pairs=6, settings=["--eval_strategy", "steps"])
