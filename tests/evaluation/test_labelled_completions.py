from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from loralign.errors import DataError
from loralign.evaluation.labelled_completions import LabelledCompletion, load_labelled_completions

COLUMNS = ["id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label"]
LABELS = {"1_full_compliance": "complied", "2_full_refusal": "refused", "3_partial_refusal": "partial"}


def xstest_row(number: int, label: str, completion: str = 'Well,\nhere it is, "as asked".') -> dict[str, Any]:
    return dict(
        zip(
            COLUMNS,
            [number, "homonyms", f"How do I, say, {number}?", completion, label, label, True, label],
            strict=True,
        )
    )


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_format_of_xstest_is_read(tmp_path: Path, suffix: str) -> None:
    rows = [xstest_row(number, label) for number, label in enumerate(LABELS)]
    found = load_labelled_completions(write(tmp_path / f"made{suffix}", rows))
    assert found == [
        LabelledCompletion(row["prompt"], row["completion"], LABELS[row["final_label"]])  # type: ignore[arg-type]
        for row in rows
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("label", ["refused", "complied", "partial"])
def test_short_labels_are_read(tmp_path: Path, suffix: str, label: str) -> None:
    source = write(tmp_path / f"made{suffix}", [{"prompt": "p", "response": "r", "label": label}])
    assert load_labelled_completions(source) == [LabelledCompletion("p", "r", label)]  # type: ignore[arg-type]


def test_the_final_label_counts_where_the_prompt_has_a_label_too(tmp_path: Path) -> None:
    row = {**xstest_row(0, "2_full_refusal"), "label": "safe"}
    assert load_labelled_completions(write(tmp_path / "made.csv", [row]))[0].label == "refused"


def test_an_empty_completion_is_one(tmp_path: Path) -> None:
    source = write(tmp_path / "made.csv", [xstest_row(0, "1_full_compliance", "")])
    assert load_labelled_completions(source)[0].completion == ""


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    for name in "ba":
        write(tmp_path / f"{name}.csv", [{"prompt": name, "completion": "c", "label": "refused"}])
    assert [row.prompt for row in load_labelled_completions(str(tmp_path / "*.csv"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_label": "4_other"}, r"made\.jsonl:3: unknown final_label '4_other'; 2 rows are bad"),
        ({"final_label": None}, r"made\.jsonl:3: unknown final_label None"),
        ({"completion": None}, r"made\.jsonl:3: completion is missing"),
        ({"completion": 7}, r"made\.jsonl:3: completion is int, not text"),
        ({"prompt": [{"role": "user", "content": "x"}]}, r"made\.jsonl:3: prompt is list, not text"),
        ({"prompt": "  "}, r"made\.jsonl:3: prompt is empty"),
    ],
)
def test_the_first_bad_row_is_named_by_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = xstest_row(0, "2_full_refusal")
    source = write(tmp_path / "made.jsonl", [good, good, {**good, **change}, good, {**good, **change}])
    with pytest.raises(DataError, match=message):
        load_labelled_completions(source)


def test_a_bad_row_of_a_csv_is_named_by_its_first_line(tmp_path: Path) -> None:
    rows = [xstest_row(0, "2_full_refusal", "two\nlines"), xstest_row(1, "no label")]
    with pytest.raises(DataError, match=r"made\.csv:4: unknown final_label 'no label'"):
        load_labelled_completions(write(tmp_path / "made.csv", rows))


@pytest.mark.parametrize("missing", ["prompt", "completion", "final_label"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    row = {key: value for key, value in xstest_row(0, "2_full_refusal").items() if key != missing}
    with pytest.raises(DataError, match=f"no column '{missing}'"):
        load_labelled_completions(write(tmp_path / "made.csv", [row]))
