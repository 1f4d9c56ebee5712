from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loralign.cli import main
from loralign.experiments.ablate import side_by_side
from loralign.experiments.experiment import ArmResult
from loralign.report.theme import Table
from tests.cli.conftest import SMALL, assert_refused, write_pairs
from tests.experiments.made_up import broken, made_up


def test_an_ablation_compares_arms_over_seeds_and_does_nothing_twice(
    adapting: list[str],
    loralign: object,
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
    reduced = next(row for row in rows if row["measure"] == "drift_reduction")
    assert (reduced["arm"], reduced["reference"]) == ("full", "plain")
    assert reduced["low"] <= reduced["value"] <= reduced["high"]
    gain = next(row for row in rows if (row["arm"], row["measure"]) == ("plain", "task_gain"))
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["lowest_seed"] <= gain["value"] <= gain["highest_seed"]
    page = (place / "index.html").read_text()
    assert "Differences to plain" in page
    # From the logs of the cells themselves.
    assert "Against plain stopped at the same task loss" in page
    assert "loralign ablate guard" in (place / "results.md").read_text()
    assert len(list((tmp_path / "out" / "subspaces").glob("*/subspace.json"))) == 1
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*/cell.json")}
    again = loralign(*words, "--json")  # type: ignore[operator]
    assert again.code == 0, again.err
    assert json.loads(again.out)["page"].endswith("index.html")
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*/cell.json")}
    # Fewer seeds of cells that are there: another question, which must not take the place of the first.
    told = (place / "results.md").read_text()
    at = words.index("--seeds")
    fewer = [*words[: at + 2], *words[at + 3 :]]
    for _ in range(2):
        other = loralign(*fewer, "--json")  # type: ignore[operator]
        assert other.code == 0, other.err
        assert f"{place.relative_to(tmp_path)} holds what was found with other arms" in other.err
        table = tmp_path / json.loads(other.out)["table"]
        assert table.parent.name.startswith("ablate-guard-")
        assert table.read_text() != told == (place / "results.md").read_text()
        assert str(table.parent.relative_to(tmp_path)) in other.err
    assert len([path for path in place.parent.iterdir() if path.is_dir()]) == 2
    assert "holds what was found" not in again.err


def test_bad_words_are_refused_in_one_line(adapting: list[str], loralign: object, tmp_path: Path) -> None:
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


def _first(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return table.headings, table.rows[0]


def arms(seeds: int) -> list[ArmResult]:
    plain, good, better = (
        made_up(name, {}, *({"retention": kept, "drift": 1 - kept, "task_gain": 0.3},) * seeds)
        for name, kept in (("plain", 0.2), ("+ alignment", 0.5), ("full", 0.6))
    )
    return [plain, good, better]


def test_the_headline_is_flattered_and_of_one_seed_not_settled() -> None:
    settled = "It is the best of 2 arms, so its lead is flattered."
    page = side_by_side("ablate guard", "adapt", arms(2)).page
    assert page.headline.startswith(
        "Most refusals kept: full, +0.400 [0.400, 0.400] against plain, with task gain 0 [0,"
    )
    assert page.headline.endswith(f"]. {settled}")
    assert any("one seed fewer than there are" in note for note in page.notes)
    page = side_by_side("ablate guard", "adapt", arms(1)).page
    assert page.headline.endswith(f"]: one seed, so nothing is settled. {settled}")
    assert any(note.startswith("One seed: the intervals") for note in page.notes)


def test_differences_hold_the_reduction_of_drift_and_are_all_among_the_numbers() -> None:
    finding = side_by_side("ablate guard", "adapt", arms(2))
    table = dict(finding.page.tables)["Differences to plain, paired"]
    row = dict(zip(table.headings, table.rows[1], strict=True))
    # 1 − 0.4 / 0.8
    assert (row["arm minus plain"], row["drift reduction"]) == ("full", "+0.500 [0.500, 0.500]")
    columns = finding.columns
    told = zip(*(columns[name] for name in ("arm", "measure", "reference")), strict=True)
    told = list(told)
    assert sum(reference == "plain" for _, _, reference in told) == 2 * 4
    # What the others lack of the full method; plain LoRA has its own table.
    table = dict(finding.page.tables)["Differences to full, paired"]
    (row,) = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
    # 1 − 0.5 / 0.4
    assert (row["arm minus full"], row["drift"], row["drift reduction"]) == (
        "+ alignment",
        "+0.100 [0.100, 0.100]",
        "−0.250 [−0.250, −0.250]",
    )
    assert sum(reference == "full" for _, _, reference in told) == 4
    assert any("drift is 11 % higher" in note for note in finding.page.notes)


def test_guarded_alignments_are_compared_in_what_they_keep_too() -> None:
    both = [
        made_up(name, {}, {"accuracy": accuracy, "reference_drift": 0.1, "drift": drift})
        for name, accuracy, drift in (("uniform", 0.6, 0.4), ("geo", 0.7, 0.1))
    ]
    page = side_by_side("ablate align", "align", both).page
    row = dict(zip(*_first(dict(page.tables)["Differences to uniform, paired"]), strict=True))
    assert row["drift reduction"].startswith("+0.750")
    assert [chart.key for chart in page.charts] == ["trade-0", "trade-1"]
    (note,) = [note for note in page.notes if note.startswith("Drift reduction is")]
    assert "drift of uniform" in note
    assert "beside the accuracy" in note
    plain = [made_up(name, {}, {"accuracy": 0.6, "reference_drift": 0.1}) for name in ("uniform", "geo")]
    page = side_by_side("ablate align", "align", plain).page
    assert not [note for note in page.notes if note.startswith("Drift reduction is")]


def test_an_arm_without_a_seed_is_compared_over_the_others_and_said_to_be() -> None:
    plain, *others = arms(2)
    short = broken("full", {}, {"retention": 0.6, "drift": 0.4, "task_gain": 0.3})
    page = side_by_side("ablate guard", "adapt", [plain, others[0], short]).page
    assert "full and plain are compared over seeds 0 alone: full lacks 1." in page.notes
    assert [row[:2] for row in dict(page.tables)["Differences to plain, paired"].rows] == [
        ("+ alignment", "2"),
        ("full", "1"),
    ]


def test_arms_of_an_alignment_are_trained_by_two_workers(model: Path, loralign: object, tmp_path: Path) -> None:
    """The whole way: real cells of ``loralign align``, shared by two processes, each trained once."""
    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    words = ["ablate", "align", "--model", str(model), "--data", data, "--validation_data", data, *SMALL]
    words += ["--arms", "uniform", "geo + gradient", "--seeds", "0", "1", "--output", "out", "--workers", "2", "--json"]
    words += ["--max_steps", "2", "--measure_every", "1", "--refine_every", "1", "--samples", "0"]
    result = loralign(*words)  # type: ignore[operator]
    assert result.code == 0, result.err
    rows = pq.read_table(tmp_path / "out" / "results" / "ablate-align" / "results.parquet").to_pylist()
    arms = {(row["arm"], row["measure"]): row for row in rows if not row["reference"]}
    assert {arm for arm, _ in arms} == {"uniform", "geo + gradient"}
    for arm in ("uniform", "geo + gradient"):
        assert arms[arm, "accuracy"]["seeds"] == 2
        assert 0 <= arms[arm, "accuracy:harmless"]["low"] <= arms[arm, "accuracy:harmless"]["high"] <= 1
        assert arms[arm, "reference_drift"]["value"] > 0
    # Another weighting and a refinement are other adapters; of one seed and recipe there is one cell.
    assert arms["uniform", "reference_drift"]["value"] != arms["geo + gradient", "reference_drift"]["value"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").glob("*/cell.json")]
    assert [one["status"] for one in records] == ["finished"] * 4
    # The other process ended by itself, with nothing to complain of.
    assert "Traceback" not in (tmp_path / "out" / "worker-1.log").read_text()
