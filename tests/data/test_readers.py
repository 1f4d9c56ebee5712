from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loralign.data.readers import read_source
from loralign.data.stored import is_hub_name
from loralign.errors import DataError
from tests.data.preference_rows import pair, plain_pair

WANTED = ("prompt", "chosen", "rejected", "objective")


def read(location: str | Path, split: str = "train") -> list[Any]:
    return read_source(str(location), wanted=WANTED, split=split, revision=None)


def failure(location: str | Path, split: str = "train") -> DataError:
    with pytest.raises(DataError) as caught:
        read(location, split)
    assert caught.value.fix
    return caught.value


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def test_json_lines_keep_line_numbers_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(pair(0)).encode() + b"\n\n" + json.dumps(pair(1)).encode())
    (table,) = read(path)
    assert [row["prompt"] for row in table.rows] == [pair(0)["prompt"], pair(1)["prompt"]]
    assert [table.place(index) for index in range(2)] == [f"{path}:1", f"{path}:3"]


def test_a_json_array_and_json_lines_named_json(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(json.dumps([pair(0), pair(1)], indent=1))
    (tmp_path / "lines.json").write_text(json.dumps(pair(0)) + "\n" + json.dumps(pair(1)))
    (array,), (lines,) = read(tmp_path / "array.json"), read(tmp_path / "lines.json")
    assert list(array.rows) == list(lines.rows) == [pair(0), pair(1)]
    assert array.place(1).endswith("array.json: row 2")


def test_csv_of_texts_names_the_first_line_of_a_row_that_spans_several(tmp_path: Path) -> None:
    rows = [{**plain_pair(0), "chosen": "two\nlines"}, plain_pair(1)]
    (table,) = read(write_csv(tmp_path / "a.csv", rows))
    assert table.rows == rows
    assert [table.place(index)[-2:] for index in range(2)] == [":2", ":4"]


def test_csv_cells_that_hold_messages_as_json_are_decoded(tmp_path: Path) -> None:
    rows = [{key: value if isinstance(value, str) else json.dumps(value) for key, value in pair(0).items()}]
    (table,) = read(write_csv(tmp_path / "a.csv", rows))
    assert table.rows == [pair(0)]


def test_csv_cells_that_only_look_like_messages_stay_text(tmp_path: Path) -> None:
    rows = [{**plain_pair(0), "chosen": '[{"a": 1}]', "rejected": "[{ not json"}]
    (table,) = read(write_csv(tmp_path / "a.csv", rows))
    assert table.rows == rows


def test_parquet_and_several_files_by_a_pattern(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(pa.Table.from_pylist([{**pair(number), "score": 0.5}]), tmp_path / f"part-{number}.parquet")
    first, second = read(tmp_path / "part-*.parquet")
    assert [first.rows, second.rows] == [[pair(0)], [pair(1)]]
    assert "score" in first.columns
    assert first.place(0).endswith("part-0.parquet: row 1")


def test_a_file_whose_own_name_holds_brackets_is_read(tmp_path: Path, write: Callable[..., str]) -> None:
    (table,) = read(write(pair(0), name="a[1].jsonl"))
    assert table.rows == [pair(0)]


def test_a_saved_dataset_and_a_split_of_a_saved_dictionary(tmp_path: Path) -> None:
    train, validation = (datasets.Dataset.from_list([pair(number)]) for number in range(2))
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, validation=validation).save_to_disk(tmp_path / "both")
    assert read(tmp_path / "one")[0].rows == [pair(0)]
    assert read(tmp_path / "both", "validation")[0].rows == [pair(1)]
    error = failure(tmp_path / "both", "test")
    assert "no split named 'test'" in str(error)
    assert "train, validation" in str(error)


def test_class_labels_are_turned_into_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"chosen": datasets.Value("string"), "objective": datasets.ClassLabel(names=["honest", "kind"])}
    )
    data = {"chosen": ["a", "b", "c"], "objective": [1, 0, None]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "labelled")
    assert [row["objective"] for row in read(tmp_path / "labelled")[0].rows] == ["kind", "honest", None]


@pytest.mark.usefixtures("offline")
def test_a_directory_in_the_hubs_layout(tmp_path: Path) -> None:
    (tmp_path / "repo" / "data").mkdir(parents=True)
    for split, number in (("train", 0), ("validation", 1)):
        path = tmp_path / "repo" / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([pair(number)]), path)
    assert read(tmp_path / "repo", "validation")[0].rows == [pair(1)]
    assert "test" in str(failure(tmp_path / "repo", "test"))


@pytest.mark.usefixtures("offline")
def test_a_hub_name_that_cannot_be_reached() -> None:
    error = failure("some-owner/some-data:config")
    assert error.place == "some-owner/some-data:config"
    assert "not available on the hub" in error.problem


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "not available on the hub either"),
        (ConnectionError("no route"), "no route"),
        (ValueError("BuilderConfig 'x' not found.\nmore"), "cannot be read as a dataset: BuilderConfig 'x' not found."),
        (RuntimeError("Dataset scripts are no longer supported"), "Dataset scripts are no longer supported"),
    ],
)
def test_every_refusal_of_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = str(failure("a/b"))
    assert expected in message
    assert "\n" not in message


def test_the_hub_is_asked_for_configuration_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def answer(*args: Any, **options: Any) -> datasets.Dataset:
        asked.update(options, args=args)
        return datasets.Dataset.from_list([pair(0)])

    monkeypatch.setattr(datasets, "load_dataset", answer)
    (table,) = read_source("owner/data:en", wanted=WANTED, split="test", revision="v2")
    assert asked == {"args": ("owner/data", "en"), "split": "test", "revision": "v2"}
    assert table.place(0) == "owner/data:en: row 1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("owner/data", True), ("owner/data:en", True), ("data/train.jsonl", False), ("a/b/c", False), ("word", False)],
)
def test_what_looks_like_a_hub_name(name: str, expected: bool) -> None:
    assert is_hub_name(name) is expected


@pytest.mark.parametrize(
    ("name", "content", "place", "problem"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ":2", "not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ":2", "a JSON list where an object is expected"),
        ("a.jsonl", b'{"a": 1}\n\xff\n', ":2", "not UTF-8 text"),
        ("a.jsonl", b"\n\n", "a.jsonl", "the file holds no rows"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1", "not valid JSON"),
        ("a.json", b"[{}", "a.json", "not valid JSON"),
        ("a.json", b"[{}, 3]", "a.json: row 2", "a JSON int where an object is expected"),
        ("a.json", b"[]", "a.json", "the file holds no rows"),
        ("a.json", b"[\xff]", "a.json", "not UTF-8 text"),
        ("a.csv", b"prompt,chosen\na,b\nc\n", ":3", "another number of cells than the header (2)"),
        ("a.csv", b"prompt,chosen\na,b,c\n", ":2", "another number of cells than the header (2)"),
        ("a.csv", b'prompt,chosen\na,"b', ":2", "not valid CSV"),
        ("a.csv", b"prompt\n\"[{'role': 'user', 'content': 'a'}]\"\n", ":2", "messages in Python's notation"),
        ("a.csv", b"", "a.csv", "the file holds no rows"),
        ("a.parquet", b"PAR1 no", "a.parquet", "not a whole Parquet file"),
        ("a.pickle", b"x", "a.pickle", "files ending in '.pickle' are not read"),
        ("noending", b"x", "noending", "files ending in 'nothing' are not read"),
    ],
)
def test_every_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes, place: str, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    error = failure(tmp_path / name)
    assert str(error.place).endswith(place)
    assert problem in error.problem


def test_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., str]
) -> None:
    path = write(pair())

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in failure(path).problem


def test_a_damaged_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list([pair(0)]).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"no")
    assert "cannot be read as a dataset" in failure(tmp_path / "saved").problem


def test_a_missing_file_suggests_its_neighbour(write: Callable[..., str]) -> None:
    path = write(pair(), name="helpful_train.jsonl")
    error = failure(path.replace("train", "trian"))
    assert error.problem == "no such file or directory"
    assert error.fix == f"did you mean {path}?"


def test_a_pattern_without_files(tmp_path: Path) -> None:
    assert failure(tmp_path / "*.jsonl").problem == "no file matches this pattern"
