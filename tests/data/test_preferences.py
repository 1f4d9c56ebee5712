from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loralign.data import load_preferences
from loralign.data.sources import Source, parse_sources
from loralign.errors import DataError
from tests.data.preference_rows import message, pair, plain_pair

Write = Callable[..., str]


def failure(sources: list[str] | str, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load_preferences(sources, **options)
    assert caught.value.place
    assert caught.value.fix
    return caught.value


def test_one_source_per_objective_labels_the_rows(write: Write) -> None:
    kind = write(pair(0, None), pair(1, None), name="kind.jsonl")
    honest = write({**pair(2, None), "objective": "ignored", "score": 3}, name="honest.jsonl")
    loaded = load_preferences([f"kind={kind}", f"honest={honest}"])
    assert loaded.objectives == ("kind", "honest")
    assert loaded.counts == {"kind": 2, "honest": 1}
    assert loaded.dataset.column_names == ["prompt", "chosen", "rejected", "objective"]
    assert loaded.dataset["objective"] == ["kind", "kind", "honest"]
    assert loaded.dataset[2] == pair(2, "honest")
    assert loaded.sources == (f"kind={kind}", f"honest={honest}")
    assert loaded.format == "conversational"
    assert len(loaded) == 3


def test_several_sources_of_one_objective_are_joined(write: Write) -> None:
    first, second = write(pair(0, None), name="a.jsonl"), write(pair(1, None), name="b.jsonl")
    loaded = load_preferences([f"kind={first}", f"kind={second}"])
    assert loaded.counts == {"kind": 2}
    assert loaded.dataset["prompt"] == [pair(0)["prompt"], pair(1)["prompt"]]


def test_a_label_column_of_any_name_gives_sorted_objectives(write: Write) -> None:
    path = write(*({**pair(number, None), "aim": name} for number, name in enumerate("zab")))
    assert load_preferences(path, label_column="aim").objectives == ("a", "b", "z")


def test_labelled_and_named_sources_may_be_joined(write: Write) -> None:
    labelled = write(pair(0, "b"), pair(1, "a"), name="x.jsonl")
    loaded = load_preferences([f"z={write(pair(2, None))}", labelled])
    assert loaded.objectives == ("z", "a", "b")


def test_expected_objectives_set_the_order(write: Write) -> None:
    path = write(pair(0, "a"), pair(1, "b"))
    assert load_preferences(path, objectives=["b", "a"]).objectives == ("b", "a")


def test_the_fingerprint_depends_on_content_and_order_only(write: Write) -> None:
    one = load_preferences(write(pair(0), pair(1), name="a.jsonl"))
    same = load_preferences(write(pair(0), "", pair(1), name="elsewhere.jsonl"))
    swapped = load_preferences(write(pair(1), pair(0), name="b.jsonl"))
    relabelled = load_preferences(write(pair(0), pair(1, "other"), name="c.jsonl"))
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, swapped.fingerprint, relabelled.fingerprint}) == 3
    assert len(one.fingerprint) == 64


def implicit(row: dict[str, Any]) -> dict[str, Any]:
    merged = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    return {**merged, "objective": row["objective"]}


@pytest.mark.parametrize("make", [pair, plain_pair], ids=["conversational", "plain"])
@pytest.mark.parametrize("form", [lambda row: row, implicit], ids=["explicit", "implicit"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "directory"])
def test_every_format_in_every_kind_of_file_gives_the_same_pairs(
    tmp_path: Path, make: Callable[[int], dict[str, Any]], form: Callable[..., dict[str, Any]], kind: str
) -> None:
    rows = [form(make(number)) for number in range(3)]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        table = [
            {key: cell if isinstance(cell, str) else json.dumps(cell) for key, cell in row.items()} for row in rows
        ]
        datasets.Dataset.from_list(table).to_pandas().to_csv(path, index=False)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    assert load_preferences(str(path)).dataset.to_list() == [make(number) for number in range(3)]


def test_conversational_and_plain_are_never_mixed(write: Write) -> None:
    plain, chat = write(plain_pair(0, "a"), name="plain.jsonl"), write(pair(0, "b"), pair(1, "b"), name="chat.jsonl")
    error = failure([plain, chat])
    assert error.place == f"{chat}:1"
    assert error.problem.startswith(f"this pair is conversational, but {plain}:1 is plain; 2 rows are bad")


@pytest.mark.parametrize(
    ("bad", "options", "problem"),
    [
        ({**pair(1), "chosen": []}, {}, "chosen is empty"),
        ({**pair(1), "rejected": pair(1)["chosen"]}, {}, "chosen and rejected are identical"),
        ({**pair(1), "chosen": 5}, {}, "chosen is 5 (int), not text or messages"),
        ({**pair(1), "prompt": [{"role": "user"}]}, {}, "message 1 of prompt has no content"),
        (pair(1, None), {}, "the label column 'objective' is empty"),
        (pair(1, ""), {}, "the label column 'objective' is empty"),
        (pair(1, "  "), {}, "the label column 'objective' is empty"),
        ({**pair(1), "objective": 4}, {}, "the label 4 in 'objective' is not text"),
        ({**pair(1), "objective": ["a"]}, {}, "the label ['a'] in 'objective' is not text"),
        (pair(1, "kind"), {"objectives": ["helpful"]}, "unknown objective 'kind'"),
        ({key: value for key, value in pair(1).items() if key != "prompt"}, {}, "prompt is missing"),
        (plain_pair(1), {}, "this pair is plain, but "),
    ],
)
def test_every_fault_of_a_row_names_its_line(
    write: Write, bad: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    path = write(pair(0), bad, pair(2))
    error = failure(path, **options)
    assert error.place == f"{path}:2"
    assert error.problem.startswith(problem)
    assert "rows are bad" not in error.problem


def test_several_bad_rows_are_counted_and_the_first_is_named(write: Write) -> None:
    path = write(pair(0), {**pair(1), "prompt": []}, pair(2), {**pair(3), "chosen": None}, pair(4, None))
    error = failure(path)
    assert error.place == f"{path}:2"
    assert error.problem == "prompt is empty; 3 rows are bad, this is the first"


@pytest.mark.parametrize("column", ["chosen", "rejected", "objective"])
def test_a_missing_column_is_named_with_the_nearest(write: Write, column: str) -> None:
    row = pair(0)
    row[column + "_"] = row.pop(column)
    path = write(row)
    error = failure(path)
    assert error.place == path
    assert error.problem.startswith(f"no column {column!r} among: ")
    assert error.problem.endswith(f"is it '{column}_'?")


def test_a_missing_label_column_is_no_fault_of_a_named_source(write: Write) -> None:
    assert load_preferences(f"kind={write(pair(0, None))}").counts == {"kind": 1}


def test_a_named_source_outside_the_expected_objectives(write: Write) -> None:
    error = failure(f"kind={write(pair(0, None))}", objectives=["honest"])
    assert "unknown objective 'kind'" in error.problem
    assert error.fix == "expected one of honest"


def test_an_expected_objective_without_rows(write: Write) -> None:
    error = failure(write(pair(0, "a")), objectives=["a", "b"])
    assert error.problem == "the objective 'b' has no rows"


def test_at_most_sixteen_objectives(write: Write) -> None:
    rows = [pair(number, f"o{number:02}") for number in range(17)]
    assert len(load_preferences(write(*rows[:16], name="16.jsonl")).objectives) == 16
    assert failure(write(*rows)).problem == "17 objectives, more than 16"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a", "a"], "the objective 'a' is named twice"),
        (["Kind", "kind"], "the objectives 'Kind' and 'kind' differ only in their case"),
        ([], "no objective is named"),
        ([" "], "an objective has no name"),
        (["a "], "the objective 'a ' has white space at an end"),
        (["a,b"], "the objective 'a,b' holds a comma"),
        (["a\nb"], "the objective 'a\\nb' holds a comma"),
        (["x" * 65], f"the objective '{'x' * 65}' has white space at an end or is too long"),
    ],
)
def test_names_of_objectives_that_cannot_be_used(write: Write, names: list[str], problem: str) -> None:
    assert failure(write(pair(0, "a")), objectives=names).problem.startswith(problem)


def test_labels_that_differ_only_in_their_case(write: Write) -> None:
    assert "differ only in their case" in failure(write(pair(0, "Kind"), pair(1, "kind"))).problem


def test_the_checks_of_the_texts_can_be_left_out(write: Write) -> None:
    path = write({**pair(0), "chosen": [message("assistant", "")]})
    assert load_preferences(path, check=False).counts == {"helpful": 1}
    assert "message 1 of chosen is empty" in failure(path).problem


def test_an_equals_sign_in_a_path_is_not_an_objective(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(pair(0), name="lr=3/data.jsonl"))
    monkeypatch.chdir(path.parents[1])
    assert parse_sources([str(path)]) == [Source(str(path))]
    assert parse_sources("lr=3/data.jsonl") == [Source("lr=3/data.jsonl")]
    assert parse_sources("kind=lr=3/data.jsonl") == [Source("lr=3/data.jsonl", "kind")]


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ([], "no data is named"),
        ("", "an empty data source"),
        ("kind=", "nothing follows 'kind='"),
        ("=a.jsonl", "an objective has no name"),
        ("kind=builtin", "the bundled data has labels of its own"),
        ("builtin:test", "the bundled data has no split 'test'"),
    ],
)
def test_sources_that_say_nothing(sources: list[str] | str, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        load_preferences(sources)
    assert caught.value.problem.startswith(problem)
    assert caught.value.fix
