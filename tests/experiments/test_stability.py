from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loralign.errors import DataError
from loralign.experiments.agreement import Agreement
from loralign.experiments.cell import base_settings
from loralign.experiments.stability import stability_finding, subspace_agreements
from loralign.experiments.subspaces import SubspaceSpec
from loralign.experiments.task_halves import task_halves
from loralign.runs import parse_adapt_recipe
from loralign.runs.adapt import load_task_split
from tests.cli.conftest import assert_refused
from tests.cli.guarding import write_task

LAYERS = 4


def test_seeds_and_halves_draw_other_samples(model: Path, kept: Path, tmp_path: Path) -> None:
    spec = SubspaceSpec(str(model), (str(kept),), 12, target_modules=("q_proj",), rank=4, min_agreement=0.0)
    seeds, halves = subspace_agreements(spec, (0, 1, 2), tmp_path)
    assert list(seeds.pairs) == ["0 and 1", "0 and 2", "1 and 2"]
    assert list(halves.pairs) == ["halves by 0", "halves by 1", "halves by 2"]
    for found in (seeds, halves):
        values = [value for pair in found.pairs.values() for value in pair.values()]
        assert len(set(values)) == len(values) == 6
        assert all(0 < value < 0.9999 for value in values)
        # Four directions among 32 outputs.
        assert set(found.chance.values()) == {math.sqrt(4 / 32)}


def test_the_command_compares_subspaces_and_updates(loralign: Any, adapting: list[str], tmp_path: Path) -> None:
    words = [
        *("stability", *adapting, "--output", str(tmp_path / "out"), "--seeds", "0", "1", "--json"),
        *("--judged_prompts", "0", "--samples", "0", "--max_steps", "2", "--save_steps", "10"),
    ]
    result = loralign(*words)
    assert result.code == 0, result.err
    told = json.loads(result.out.splitlines()[-1])
    assert told["headline"].startswith("Mid-to-deep layers against 0.85: ")
    columns = pq.read_table(told["results"]).to_pydict()
    names = ["subspace, seeds", "subspace, halves", "ΔW_A, guarded", "ΔW_A, plain"]
    assert list(dict.fromkeys(columns["comparison"])) == names
    by_name = {name: columns["comparison"].count(name) for name in names}
    assert by_name == {names[0]: LAYERS, names[1]: 2 * LAYERS, names[2]: LAYERS, names[3]: LAYERS}
    assert all(-1 <= value <= 1 for value in columns["value"])
    page = Path(told["page"]).read_text()
    assert "Agreement along the depth" in page
    assert "Cosines by kind of layer" in Path(told["table"]).read_text()
    assert len(list((tmp_path / "out" / "cells").glob("*/cell.json"))) == 4

    halved = loralign(*words, "--halve_task", "true")
    assert halved.code == 0, halved.err
    told = json.loads(halved.out.splitlines()[-1])
    columns = pq.read_table(told["results"]).to_pydict()
    pairs = dict.fromkeys(zip(columns["comparison"], columns["pair"], strict=True))
    assert list(pairs)[-6:] == [
        *(("ΔW_A, guarded", "0 and 1"), *(("ΔW_A, guarded, halves", f"halves with {seed}") for seed in (0, 1))),
        *(("ΔW_A, plain", "0 and 1"), *(("ΔW_A, plain, halves", f"halves with {seed}") for seed in (0, 1))),
    ]
    assert all(-1 <= value < 0.999999 for value in columns["value"])
    records = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("*/cell.json")]
    assert len(records) == 12
    # Each half by both arms with both seeds, scored on what the recipe holds back.
    data = [Path(record["settings"]["data"][0]).name for record in records]
    assert {name: data.count(name) for name in data} == {
        **{"task.jsonl": 4, "first-half.jsonl": 4, "second-half.jsonl": 4}
    }
    assert "of halves is of two adapters with the same seed" in Path(told["table"]).read_text()


def test_halves_have_no_sample_in_common_and_are_scored_on_what_the_whole_is_scored_on(
    adapting: list[str], task: Path, tmp_path: Path
) -> None:
    base = base_settings("adapt", adapting)
    halves = list(task_halves(base, tmp_path).values())
    train, held_back = load_task_split(parse_adapt_recipe([], base))
    split = [load_task_split(parse_adapt_recipe([], {**base, **half})) for half in halves]
    assert [part[1].to_list() for part in split] == [held_back.to_list()] * 2
    first, second = ([json.dumps(row) for row in part[0]] for part in split)
    assert not set(first) & set(second)
    assert sorted(first + second) == sorted(json.dumps(row) for row in train)
    assert len(first) == len(second) == 6
    # Another worker finds them, and other data are others.
    assert list(task_halves(base, tmp_path).values()) == halves
    other = write_task(tmp_path / "other.jsonl", count=20)
    assert task_halves({**base, "data": [str(other)]}, tmp_path)["first half"] not in halves
    few = write_task(tmp_path / "few.jsonl", count=5)
    with pytest.raises(DataError, match="1 samples to train on"):
        task_halves({**base, "data": [str(few)]}, tmp_path)


def test_an_arm_without_two_adapters_is_said_to_be_without() -> None:
    found = [Agreement(name, pairs, {}) for name, pairs in (("a", {}), ("b", {"0 and 1": {}}))]
    notes = stability_finding(found, [], 0.85).page.notes
    assert notes[:2] == [f"{name}: no two adapters to compare have a part in the subspace." for name in "ab"]


@pytest.mark.parametrize(
    ("words", "fix"),
    [(["--seeds", "3"], "at least two"), (["--seeds", "0", "1", "--threshold", "1.5"], "not between 0 and 1")],
)
def test_faults_are_told_in_one_line(loralign: Any, adapting: list[str], words: list[str], fix: str) -> None:
    assert_refused(loralign("stability", *adapting, *words), fix)
