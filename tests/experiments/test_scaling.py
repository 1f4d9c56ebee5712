"""Which runs the law is fitted to, what each forgot, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralign.errors import ConfigError, DataError, StateError
from loralign.evaluation.parquet import write_columns
from loralign.experiments.experiment import ExperimentOptions
from loralign.experiments.language import read_language
from loralign.experiments.measurement import make_measurement
from loralign.experiments.scaling import (
    PLAIN,
    ScalingArm,
    ScalingCell,
    ScalingPlan,
    check_plan,
    scaling_cell,
    warmup_steps,
)
from loralign.experiments.store import LANGUAGE_FILE, CellRecord
from loralign.files import write_json
from loralign.runs import parse_adapt_recipe
from tests.cli.conftest import assert_refused, loralign, with_template
from tests.experiments.made_up import samples
from tests.models.tiny_models import write_model

__all__ = ["loralign"]

RECIPE: dict[str, Any] = {"guard": "auto", "data": ["task.jsonl"], "model": "small"}
TEXT = "QWERTYUIOP,.;[]=-"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(write_model(tmp_path_factory.mktemp("model") / "wide", hidden=48))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of characters that the task, all letters, teaches the models not to expect."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": (TEXT * 8)[index : index + 80]}) + "\n" for index in range(6)))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 3),
        (["--warmup_steps", "0"], 0),
        # A share of the steps, rounded up.
        (["--warmup_steps", "0.25"], 3),
        (["--warmup_steps", "0.05"], 1),
        (["--lr_scheduler_type", "constant"], 0),
        (["--lr_scheduler_type", "cosine"], 3),
    ],
)
def test_the_warm_up_is_what_the_schedule_makes_of_it(words: list[str], expected: int) -> None:
    training = parse_adapt_recipe(["--data", "task.jsonl", *words]).training
    assert warmup_steps(training, 10) == expected


def recorded(directory: Path, environment: dict[str, Any], rows: int = 100) -> ScalingCell:
    """A cell of 40 steps of 8 samples, read from what its run and its measurement left."""
    measure = make_measurement("language", {})
    settings = {"model": "small", "data": ["task.jsonl"], "seed": 3, "max_steps": 40, "guard": "none"}
    record = CellRecord("f" * 64, "adapt", "finished", settings, (measure,), directory=directory)
    write_json(record.run / "run.json", {"data": {"train": rows}, "environment": environment})
    (place,) = record.measured("language")
    place.mkdir(parents=True)
    write_columns(place / LANGUAGE_FILE, {"before": [1.0, 2.0], "after": [1.5, 2.5], "parameters": [9.0, 9.0]})
    return scaling_cell(ScalingArm("small", PLAIN, 40, {}), record, samples(0.5, 0.1))


def test_a_cell_counts_the_samples_of_all_processes(tmp_path: Path) -> None:
    one, four = (recorded(tmp_path / str(number), {"processes": number}) for number in (1, 4))
    assert (one.processes, one.amount, one.passes) == (1, 320, 3.2)
    assert (four.processes, four.amount, four.passes) == (4, 1280, 12.8)
    assert (one.size, one.before, one.after, one.warmup, one.seed) == (9, 1.5, 2.0, 3, 3)
    older = recorded(tmp_path / "older", {})
    assert (older.processes, older.amount, older.tokenizer) == (None, 320, None)
    with pytest.raises(StateError, match="cannot be read"):
        recorded(tmp_path / "empty", {"processes": 1}, rows=0)


def test_a_tokenizer_is_known_by_how_it_splits_text(tmp_path: Path, model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "same": {},
        "padded": {"padding": {"strategy": "BatchLongest"}, "added_tokens": []},
        "other": {"model": {**content["model"], "merges": content["model"]["merges"][:-1]}},
    }
    found = {}
    for name, changed in changes.items():
        write_json(tmp_path / name / "run" / "adapter" / "tokenizer.json", {**content, **changed})
        found[name] = recorded(tmp_path / name, {"processes": 1}).tokenizer
    assert found["same"] == found["padded"]
    assert None not in found.values()
    assert found["same"] != found["other"]


def test_the_task_under_another_name_is_no_other_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.jsonl").write_text('{"text": "learnt"}\n')
    Path("text.jsonl").write_text('{"text": "known"}\n')
    Path("link.jsonl").symlink_to("task.jsonl")
    Path("copy.jsonl").write_bytes(Path("task.jsonl").read_bytes())
    options = ExperimentOptions(tmp_path)
    for name in ("./task.jsonl", str(tmp_path / "task.jsonl"), "link.jsonl", "copy.jsonl", "tas*.jsonl", "*.jsonl"):
        with pytest.raises(ConfigError, match="is what is being learnt"):
            check_plan(RECIPE, options, ScalingPlan(("text.jsonl", name)))
    for name in ("text.jsonl", "tex*.jsonl", "no*.jsonl"):
        check_plan(RECIPE, options, ScalingPlan((name,)))


@pytest.mark.parametrize(
    ("recipe", "plan", "error", "words"),
    [
        ({}, {"text": ("task.jsonl",)}, ConfigError, "is what is being learnt"),
        ({"guard": "here", "model": None}, {"models": ("a", "b")}, ConfigError, "here is of one model"),
        ({}, {"amounts": (10,)}, DataError, "1 amount of data"),
        ({"model": None}, {"amounts": (10, 20), "models": ("a", "b")}, None, ""),
        ({}, {"models": ("a", "b")}, ConfigError, "small is the model, but not one of these"),
        ({}, {"models": ("small", "b")}, None, ""),
        ({"guard": "here"}, {}, None, ""),
        # The recipe's own warm-up is of three steps, the first of which is at rate zero.
        ({}, {"amounts": (4, 3, 8)}, ConfigError, "3 steps end within the warm-up of 3"),
        ({}, {"amounts": (4, 5, 6)}, None, ""),
        ({"warmup_steps": 0}, {"amounts": (1, 2, 3)}, None, ""),
        ({"lr_scheduler_type": "constant"}, {"amounts": (1, 2, 3)}, None, ""),
    ],
)
def test_a_plan_that_no_law_can_come_of_is_refused_before_anything_runs(
    recipe: dict[str, Any], plan: dict[str, Any], error: type[Exception] | None, words: str, tmp_path: Path
) -> None:
    made, base = ScalingPlan(**{"text": ("text.jsonl",), **plan}), {**RECIPE, **recipe}
    if error is None:
        check_plan(base, ExperimentOptions(tmp_path), made)
        return
    with pytest.raises(error, match=words):
        check_plan(base, ExperimentOptions(tmp_path), made)


def test_the_command_fits_the_law_to_two_models(
    loralign: Any,
    adapting: list[str],
    model: Path,
    wide: Path,
    text: Path,
    tmp_path: Path,
) -> None:
    result = loralign(
        *("scaling", *adapting, "--pretraining_data", text, "--models", model, wide, "--amounts", "2", "8"),
        *("--output", tmp_path / "out", "--judged_prompts", "0", "--samples", "0", "--learning_rate", "0.5"),
        *("--warmup_steps", "0", "--save_steps", "100", "--per_device_train_batch_size", "2"),
        *("--guard_mode", "project", "--probe_every", "0", "--reestimate_every", "0", "--dtype", "float32", "--json"),
    )
    assert result.code == 0, result.err
    told = json.loads(result.out.splitlines()[-1])
    assert "times what plain ones do" in told["headline"], told["headline"]
    columns = pq.read_table(told["results"]).to_pydict()
    runs = [index for index, kind in enumerate(columns["kind"]) if kind == "run"]
    # Steps times batch; both starts measured alike by all their runs.
    assert [columns["amount"][index] for index in runs] == [4, 16] * 4
    sizes, starts = ([columns[name][index] for index in runs] for name in ("size", "start"))
    assert len(set(sizes[:4])) == len(set(sizes[4:])) == 1
    assert (sizes[0], starts[0]) == pytest.approx(measured(model, text))
    assert (sizes[4], starts[4]) == pytest.approx(measured(wide, text))
    tables = sorted((tmp_path / "out" / "cells").glob("*/measures/*/language.parquet"))
    assert len(tables) == 8
    losses = read_language(tables[0])
    assert len(losses.before) == 6
    assert losses.before != losses.after
    assert "Forgetting against fine-tuning data" in Path(told["page"]).read_text()


def measured(model: Path, text: Path) -> tuple[float, float]:
    """Parameters, and the mean over lines of the loss per token, by transformers alone."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    losses = []
    for line in text.read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.no_grad():
            losses.append(float(loaded(input_ids=ids, labels=ids).loss))
    return loaded.num_parameters(), sum(losses) / len(losses)


def test_faults_are_told_in_one_line(
    loralign: Any, adapting: list[str], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(loralign("scaling", *adapting), "--pretraining_data", "general text")
    beside = loralign("scaling", *adapting, "--pretraining_data", "own", text)
    assert_refused(beside, "--pretraining_data", "own stands beside other text")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert_refused(loralign("scaling", *adapting, "--pretraining_data", "own"), "write ./own for it")
    words = ("scaling", *adapting, "--pretraining_data")
    assert_refused(loralign(*words, text, "--amounts", "0", "5"), "--amounts")
    assert_refused(loralign(*words, "nowhere.jsonl"), "nowhere.jsonl")
    assert_refused(loralign(*words, text, "--models", "x", "x"), "--models", "once")
    assert_refused(loralign(*words, text, "--models", "x", "y"), "--models", "is the model, but not one of these")
    assert_refused(loralign(*words, text, "--pretraining_samples", "1"), "too few")
