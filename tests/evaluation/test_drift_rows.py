from __future__ import annotations

from typing import Any

import pytest

from loralign.errors import DataError
from loralign.evaluation.drift_rows import DriftRow, check_rows, drift_rows, paired


def row(name: str, **changes: Any) -> DriftRow:
    values: dict[str, Any] = {"id": name, "label": "unsafe", "category": "hate", "refused": 0.5, "toxicity": 0.1}
    return DriftRow(**{**values, **changes})


def test_records_become_rows() -> None:
    records = [
        {"id": "a", "label": "safe", "category": None, "refused": 1, "toxicity": 0.25, "response": "not looked at"},
        {"id": 7, "label": "unsafe", "category": "hate", "refused": 0.0, "toxicity": 0.5, "part": "test"},
    ]
    assert drift_rows(records) == [DriftRow("a", "safe", "", 1.0, 0.25), DriftRow("7", "unsafe", "hate", 0.0, 0.5)]
    assert drift_rows([{"id": "a", "label": "safe", "refused": 1}]) == [DriftRow("a", "safe", "", 1.0, None)]


@pytest.mark.parametrize("key", ["id", "label", "refused"])
@pytest.mark.parametrize("absent", [True, False])
def test_a_record_without_a_value_is_named(key: str, absent: bool) -> None:
    record: dict[str, Any] = {"id": "a", "label": "safe", "refused": 1.0, key: None}
    if absent:
        del record[key]
    with pytest.raises(DataError, match=f"run A: row 1: no {key}"):
        drift_rows([{"id": "b", "label": "safe", "refused": 1.0}, record], place="run A")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "run: there are no rows"),
        ([row("a"), row("b"), row("a"), row("c"), row("b")], "run: more than one row for 'a', 'b'"),
        ([row("a"), row("b", label="harmful")], "run: b: the label 'harmful' is unknown"),
        ([row("a", refused=1.2)], "run: a: refused is 1.2, no probability"),
        ([row("a", refused=float("nan"))], "run: a: refused is nan"),
        ([row("a", toxicity=-0.1)], "run: a: toxicity is -0.1"),
        ([row("a"), *(row(name, toxicity=None) for name in "bcdef")], "no toxicity for 'b', 'c', 'd' and 2 more"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(rows: list[DriftRow], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_rows(rows, "run")


def test_partners_come_in_the_order_of_the_run() -> None:
    rows, others = [row("a"), row("b"), row("c")], [row(name, refused=0.25) for name in "cab"]
    assert [each.id for each in paired(rows, others, "baseline")] == ["a", "b", "c"]
    assert all(each.refused == 0.25 for each in paired(rows, others, "baseline"))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([row("a"), row("d")], r"baseline: no row for 'b', 'c' \(run both on the same prompts\)"),
        ([row(name) for name in "abcxyzuv"], "baseline: rows without a partner: 'x', 'y', 'z' and 2 more"),
        ([row("a"), row("b", label="safe"), row("c")], "another label or category for 'b'"),
        ([row("a"), row("b"), row("c", category="privacy")], "another label or category for 'c'"),
        ([row(name, toxicity=None) for name in "abc"], "baseline: toxicity was measured in one run only"),
    ],
)
def test_rows_that_do_not_pair_up_are_named(others: list[DriftRow], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired([row("a"), row("b"), row("c")], others, "baseline")
