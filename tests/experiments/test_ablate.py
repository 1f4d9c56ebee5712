from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loralign.cli import main
from tests.cli.conftest import assert_refused, loralign  # noqa: F401 - a fixture


def test_an_ablation_compares_arms_over_seeds_and_does_nothing_twice(
    adapting: list[str],
    loralign: object,  # noqa: F811
    tmp_path: Path,
) -> None:
    words = ["ablate", "guard", *adapting, "--arms", "plain", "full", "--seeds", "0", "1", "--output", "out"]
    words += ["--batch_eval_metrics", "true"]
    result = loralign(*words)  # type: ignore[operator]
    assert result.code == 0, result.err
    assert "[4/4] cells finished" in result.err
    place = tmp_path / "out" / "results" / "ablate-guard"
    rows = pq.read_table(place / "results.parquet").to_pylist()
    assert {(row["arm"], row["seeds"]) for row in rows} == {("plain", 2.0), ("full", 2.0)}
    gain = next(row for row in rows if (row["arm"], row["measure"]) == ("plain", "task_gain"))
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["lowest_seed"] <= gain["value"] <= gain["highest_seed"]
    page = (place / "index.html").read_text()
    assert "Differences to plain" in page
    assert "loralign ablate guard" in (place / "results.md").read_text()
    assert len(list((tmp_path / "out" / "subspaces").glob("*/subspace.json"))) == 1
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*/cell.json")}
    again = loralign(*words, "--json")  # type: ignore[operator]
    assert again.code == 0, again.err
    assert json.loads(again.out)["page"].endswith("index.html")
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*/cell.json")}


def test_bad_words_are_refused_in_one_line(adapting: list[str], loralign: object, tmp_path: Path) -> None:  # noqa: F811
    for words, told in (
        (["ablate"], ["ablate align or ablate guard"]),
        (["ablate", "guard", adapting[0]], ["--data", "no task"]),
        (["ablate", "guard", *adapting, "--arms", "plane"], ["'plane' is no arm"]),
        (["ablate", "guard", *adapting, "--seeds", "1", "1"], ["--seeds", "repeat"]),
        (["ablate", "guard", *adapting, "--workers", "0"], ["workers"]),
        (["ablate", "guard", *adapting, "--lambda_alignment", "0", "--guard", "x"], ["lambda_alignment"]),
        (["ablate", "guard", *adapting, "--driftcheck", "nowhere", "--arms", "plain"], ["nowhere"]),
        (["ablate", "align", "--model", adapting[0], "--storage", "nowhere", "--arms", "geo"], ["--storage"]),
    ):
        assert_refused(loralign(*words, "--output", "out"), *told)  # type: ignore[operator]
    assert not (tmp_path / "out" / "cells").exists()


def test_help_names_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ablate", "--help"])
    text = capsys.readouterr().out
    assert "--arms" in text
    assert "--seeds" in text
