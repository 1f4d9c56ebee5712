from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loralign.data.driftcheck import DriftPrompt, DriftSet, build_driftcheck
from loralign.data.driftcheck.prompt import prompt_id
from loralign.data.driftcheck.storage import save_driftcheck
from loralign.errors import ConfigError, DataError
from loralign.experiments.cell import Cell, make_cell
from loralign.experiments.measuring import Measures, measure_cell
from loralign.experiments.own_text import OWN
from loralign.experiments.store import CellStore, measure_place
from loralign.files import write_json
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
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


def prompts(directory: Path, **counts: int) -> str:
    """A set whose test part has so many prompts of each label."""
    save_driftcheck(
        DriftSet.of(
            DriftPrompt(
                prompt_id(label, text), text, label, "general" if label == "safe" else "violence", "made", "CC0", part
            )
            for part, sizes in (("train", {"safe": 3, "unsafe": 3}), ("test", counts))
            for label, count in sizes.items()
            for text in (f"{part} {label} {index}" for index in range(count))
        ),
        {},
        directory,
    )
    return str(directory)


def test_prompts_too_few_to_compare_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    Measures(driftcheck=prompts(tmp_path / "enough", safe=2, unsafe=2)).check()
    with pytest.raises(DataError, match="'test' holds no prompts"):
        Measures(driftcheck=prompts(tmp_path / "empty")).check()
    for label, other in (("safe", "unsafe"), ("unsafe", "safe")):
        few = prompts(tmp_path / label, **{label: 1, other: 3})
        with pytest.raises(DataError, match=f"1 of the 4 prompts asked of the test part are {label}, which"):
            Measures(driftcheck=few).check()
        # The whole part has enough of both, but fewer are asked.
        with pytest.raises(DataError, match=r"1 of the 3 prompts.*raise --driftcheck_prompts"):
            Measures(driftcheck=str(tmp_path / "enough"), prompts=3).check()


def test_a_measurement_is_known_by_its_settings_and_what_is_in_its_set(tmp_path: Path) -> None:
    built, reviews, text = prompts(tmp_path / "set", safe=2, unsafe=2), sst2_file(tmp_path), tmp_path / "text.jsonl"
    text.write_text("one")
    whole = Measures(built, 4, (f"sst2={reviews}", "mmlu"), 5, (str(text),), 3)
    before = whole.asked()
    assert [one.kind for one in before] == ["driftcheck", "language", "task", "task"]
    assert len({one.key for one in before}) == 4
    assert Measures().asked() == ()

    def changed(**changes: Any) -> list[int]:
        """Which are others now."""
        after = replace(whole, **changes).asked()
        return [index for index, one in enumerate(before) if one.fingerprint != after[index].fingerprint]

    assert [changed(prompts=5), changed(language_samples=4), changed(task_limit=6)] == [[0], [1], [2, 3]]
    # Another task leaves those before as they are, and so does another place of the same files.
    assert changed(tasks=(f"sst2={reviews}", "mmlu", "gsm8k")) == []
    shutil.copytree(built, tmp_path / "moved")
    assert changed(driftcheck=str(tmp_path / "moved")) == []
    text.write_text("other")
    reviews.write_text(reviews.read_text().upper())
    assert changed() == [1, 2]
    assert changed(driftcheck=prompts(tmp_path / "other", safe=3, unsafe=2)) == [0, 1, 2]


def test_the_start_is_asked_in_the_revision_that_the_recipe_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, str | None]] = []

    def check(subject: CheckSubject, prompts: str, output: Path, options: CheckOptions, **others: str) -> None:
        asked.append((subject.name, subject.revision))
        output.mkdir(parents=True)
        for name in ("run.json", "responses.parquet"):
            (output / name).touch()

    monkeypatch.setattr("loralign.experiments.measuring.check_drift", check)
    measures = Measures(driftcheck=prompts(tmp_path / "set", safe=2, unsafe=2))
    for number, revision in enumerate((None, "v2", "v2")):
        settings = {"model": "owner/tiny", "revision": revision, "seed": 0}
        cell = Cell("adapt", settings, measures.asked(), str(number) * 64)
        measure_cell(CellStore(tmp_path), cell, *cell.measures)
    start, adapter = "owner/tiny", "run/adapter"
    told = [(name if name == start else str(name)[-len(adapter) :], revision) for name, revision in asked]
    # The adapter names its base's revision itself.
    assert told == [(start, None), (adapter, None), (start, "v2"), (adapter, None), (adapter, None)]


def test_a_cell_is_measured_with_its_dtype_and_what_cannot_be_followed_is_told(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_driftcheck(["builtin"], tmp_path / "set", safe=60, unsafe=60, seed=0)
    asked = Measures(driftcheck=str(tmp_path / "set"), prompts=2, tasks=(f"sst2={sst2_file(tmp_path)}",)).asked()
    settings = {"model": str(model), "dtype": "float16", "load_in_4bit": True, "seed": 3}
    cell, store = Cell("adapt", settings, asked, "f" * 64), CellStore(tmp_path / "store")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    write_adapter(store.place(cell) / "run" / "adapter", base)
    with caplog.at_level(logging.WARNING, logger="loralign"):
        for one in asked:
            measure_cell(store, cell, one)
    told = [record.getMessage() for record in caplog.records if record.name == "loralign.experiments.measuring"]
    assert told == [f"load_in_4bit is set, but the {one} is of the unquantised base" for one in ("driftcheck", "task")]
    check, task = (measure_place(store.place(cell), one) for one in asked)
    for run in (check / "check", check / "check" / "baseline"):
        assert read(run / "run.json")["options"]["dtype"] == "float16"
        assert read(run / "run.json")["environment"]["base_dtype"] == "float16"
    tasks = read(task / "tasks.json")
    assert tasks["environment"]["base_dtype"] == "float16"
    # The cell's own seed would draw other solved examples than that of its neighbours.
    assert tasks["settings"]["seed"] == 0
    assert list(tasks["arms"]) == ["adapter"]


@pytest.mark.parametrize(("given", "length"), [({}, 256), ({"max_length": 96}, 96)])
def test_text_is_cut_at_the_length_that_the_recipe_trains_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], length: int
) -> None:
    """Settings hold what differs from the command's defaults, which are no less the recipe's."""
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a"}\n{"text": "b"}\n')
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    (asked,) = Measures(language=(str(text),), language_samples=2).asked()
    cell = make_cell("adapt", {"model": str(model), "data": [str(task)]}, given, 0, [asked])
    used: list[int] = []
    monkeypatch.setattr(
        "loralign.experiments.measuring.score_language", lambda *parts, max_length, dtype: used.append(max_length)
    )
    measure_cell(CellStore(tmp_path / "store"), cell, asked)
    assert used == [length]


def test_each_start_writes_its_own_text_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose cells share it; another start has another, and one that changed is another start."""
    task = tmp_path / "task.jsonl"
    task.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    (asked,) = Measures(language=(OWN,), language_samples=3).asked()
    drawn: list[tuple[str | None, int]] = []
    used: list[list[list[int]]] = []

    def write(target: Path, samples: int, start: str | None, adapter: str | None, **options: Any) -> None:
        drawn.append((start, samples))
        write_json(target, {"ids": [[len(drawn)] * 97] * samples})

    monkeypatch.setattr("loralign.experiments.measuring.write_own_text", write)
    monkeypatch.setattr(
        "loralign.experiments.measuring.score_language",
        lambda adapter, rows, *parts, **options: used.append([one.ids for one in rows]),
    )
    store = CellStore(tmp_path / "store")
    for start, seed in ((model, 0), (model, 1), (other, 0)):
        measure_cell(store, make_cell("adapt", {"model": str(start), "data": [str(task)]}, {}, seed, [asked]), asked)
    assert drawn == [(str(model), 3), (str(other), 3)]
    assert used == [[[1] * 97] * 3, [[1] * 97] * 3, [[2] * 97] * 3]


def test_text_of_its_own_needs_no_file(tmp_path: Path) -> None:
    Measures(language=(OWN,)).check()
    with pytest.raises(DataError):
        Measures(language=("elsewhere.jsonl",)).check()
