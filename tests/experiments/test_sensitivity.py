from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from loralign.errors import ConfigError
from loralign.evaluation.bootstrap import Ratio
from loralign.experiments.experiment import Arm, ArmResult, ExperimentOptions
from loralign.experiments.factors import Factors, Setting, settings
from loralign.experiments.protection import factor_results
from loralign.experiments.sensitivity import guard_subspaces, sensitivity, sensitivity_finding
from loralign.report.theme import Table
from tests.cli.conftest import assert_refused
from tests.experiments.made_up import records

OWN = Setting(None, 64, 96, "hard")
FACTORS = Factors(rank=(8, 16, 32), sketch=(64,), samples=(48, 96), projection=("hard", "soft"))
TABLE = Table(("arm",), (("recipe",),))


def arm(name: str, kept: float, gain: float, *, measures: Sequence[str] = ("retention",), seeds: int = 2) -> ArmResult:
    """Outcomes of 400 samples, a share of which is 1; the same samples in every arm."""
    levels = (np.arange(400) + 0.5) / 400

    def samples(share: float) -> Any:
        return (Ratio((levels < share).astype(float), np.ones(400)),)

    outcome = {"task_gain": samples(gain), "drift": samples(1 - kept), **{key: samples(kept) for key in measures}}
    return ArmResult(Arm(name), records(*range(seeds)), (outcome,) * seeds)


def made(**changes: Any) -> list[ArmResult]:
    return [
        arm("plain", 0.2, 0.9, **changes),
        arm("recipe", 0.7, 0.8, **changes),
        arm("rank 8", 0.4, 0.8, **changes),
        arm("rank 16", 0.7, 0.8, **changes),
        arm("rank 32", 0.7, 0.5, **changes),
        arm("samples 48", 0.5, 0.8, **changes),
        arm("projection soft", 0.6, 0.8, **changes),
    ]


def test_the_page_says_where_protection_saturates_and_task_gain_falls() -> None:
    results = made()
    found = factor_results(results, settings(FACTORS, OWN), FACTORS, OWN)
    assert [[result.arm.name for result in one.results] for one in found] == [
        *(["8", "16", "32"], ["64"], ["48", "96"], ["hard", "soft"]),
    ]
    finding = sensitivity_finding(results, found, TABLE, [])
    headline = finding.page.headline
    assert "rank: protection (refusals kept) saturates at 16; task gain falls from 32 on." in headline
    assert "samples: protection (refusals kept) still improves at the largest value, 96; task gain is not" in headline
    assert "is better by −0.100" in headline
    assert "with soft than with hard, settled." in headline
    # One value of a factor says nothing.
    assert "sketch" not in headline
    assert [title for title, _ in finding.page.tables[:4]] == ["By rank", "By sketch", "By samples", "By projection"]
    chart = finding.page.charts[0]
    assert list(chart.figure.data[0].x) == ["8", "16", "32"]
    assert list(chart.figure.data[0].y) == pytest.approx([0.4, 0.7, 0.7])
    # What plain LoRA keeps and gains is drawn across.
    assert [shape.y0 for shape in chart.figure.layout.shapes] == pytest.approx([0.2, 0.9])
    names = ("factor", "measure", "arm", "reference", "value")
    rows = [row for row in zip(*(finding.columns[name] for name in names), strict=True) if row[0] == "rank"]
    found = {row[2:4]: row[4] for row in rows if row[1] == "retention"}
    assert found == pytest.approx(
        {("8", ""): 0.4, ("16", ""): 0.7, ("32", ""): 0.7, ("16", "8"): 0.3, ("32", "8"): 0.3, ("32", "16"): 0.0}
    )


def test_of_one_seed_nothing_is_called_settled() -> None:
    results = made(seeds=1)
    page = sensitivity_finding(results, factor_results(results, settings(FACTORS, OWN), FACTORS, OWN), TABLE, []).page
    assert ", settled" not in page.headline
    assert page.headline.count("one seed, so nothing is settled.") == 3
    assert any(note.startswith("One seed: the intervals") for note in page.notes)


def test_values_that_lack_a_seed_are_told() -> None:
    results = [one if one.arm.name != "rank 32" else arm("rank 32", 0.7, 0.5, seeds=1) for one in made()]
    found = factor_results(results, settings(FACTORS, OWN), FACTORS, OWN)
    notes = sensitivity_finding(results, found, TABLE, []).page.notes
    assert [note.partition(":")[0] for note in notes if "both have" in note] == ["rank"]


def test_without_judged_answers_protection_is_drift() -> None:
    results = made(measures=())
    found = factor_results(results, settings(FACTORS, OWN), FACTORS, OWN)
    assert {one.protection for one in found} == {"drift"}
    assert found[0].sentences() == ["rank: protection (drift) saturates at 16; task gain falls from 32 on."]


def test_what_is_left_of_hardly_any_refusals_decides_nothing() -> None:
    little = {"retention": (Ratio(np.ones(9), np.ones(9)),)}
    few = [ArmResult(one.arm, one.cells, tuple({**each, **little} for each in one.outcomes)) for one in made()]
    assert {one.protection for one in factor_results(few, settings(FACTORS, OWN), FACTORS, OWN)} == {"drift"}


def test_a_factor_of_the_full_grid_is_judged_by_the_mean_over_the_others() -> None:
    factors = Factors(rank=(8, 16), sketch=(), samples=(24, 48), projection=())
    results = [
        arm(f"rank {rank}, samples {samples}", rank / 32 + samples / 96, 0.5)
        for rank in (8, 16)
        for samples in (24, 48)
    ]
    found = factor_results(results, settings(factors, OWN, full_grid=True), factors, OWN)
    ranks = sensitivity_finding(results, found, TABLE, []).page.charts[0]
    assert list(ranks.figure.data[0].y) == pytest.approx([0.25 + 0.375, 0.5 + 0.375], abs=0.01)


def test_an_arm_whose_samples_are_too_few_fails_alone(
    model: Path, kept: Path, adapting: list[str], tmp_path: Path
) -> None:
    from loralign.experiments.cell import base_settings

    base = base_settings("adapt", adapting)
    lone = tmp_path / "lone.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    # Responses so short that two samples have fewer tokens than the least rank of the last layer.
    lone.write_text(
        "".join(json.dumps({**row, "completion": [{"role": "assistant", "content": "a"}]}) + "\n" for row in rows)
    )
    base = {**base, "alignment_data": [str(lone)], "fisher_tokens": 1}
    guards, failed = guard_subspaces([Setting(), Setting(samples=2)], base, Factors(), tmp_path)
    assert list(guards) == [Setting()]
    assert "too few" in failed[Setting(samples=2)]


def test_a_recipe_with_a_subspace_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several are to be compared"):
        sensitivity({"guard": "somewhere"}, ExperimentOptions(tmp_path))


def test_a_budget_which_makes_all_arms_drift_alike_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--drift_budget: a budget steers every arm to the same drift"):
        sensitivity({"guard": "auto", "drift_budget": 0.1}, ExperimentOptions(tmp_path))


def test_more_samples_than_there_are_are_no_arm(loralign: Any, adapting: list[str], tmp_path: Path) -> None:
    words = ["sensitivity", *adapting, "--output", str(tmp_path / "out"), "--ranks", "2", "--sketches", "64"]
    result = loralign(*words, "--fisher_sample_counts", "6", "500")
    assert_refused(result, "for the 500 of 'samples 500'", "--fisher_sample_counts", "name more --alignment_data")
    assert not list((tmp_path / "out" / "cells").glob("*"))


def test_prompts_that_cannot_be_asked_are_refused_before_a_subspace_is_estimated(
    loralign: Any, adapting: list[str], tmp_path: Path
) -> None:
    words = ["sensitivity", *adapting, "--output", str(tmp_path / "out"), "--workers", "2"]
    assert_refused(loralign(*words, "--driftcheck", str(tmp_path / "nowhere")), "nowhere")
    assert not (tmp_path / "out").exists()


def test_the_command_adapts_every_setting_once(loralign: Any, adapting: list[str], tmp_path: Path) -> None:
    words = [
        *("sensitivity", *adapting, "--output", str(tmp_path / "out"), "--ranks", "2", "48", "--sketches", "64"),
        *("--fisher_sample_counts", "12", "--projections", "hard", "--judged_prompts", "0", "--samples", "0"),
        *("--max_steps", "2", "--save_steps", "10", "--guard_mode", "project", "--warmup_steps", "0", "--json"),
    ]
    result = loralign(*words)
    assert result.code == 0, result.err
    told = json.loads(result.out.splitlines()[-1])
    assert "rank: " in told["headline"]
    columns = pq.read_table(told["results"]).to_pydict()
    assert set(columns["factor"]) == {"arms", "rank", "sketch", "samples", "projection"}
    names = dict.fromkeys(
        name for name, factor in zip(columns["arm"], columns["factor"], strict=True) if factor == "arms"
    )
    assert list(names) == ["plain", "recipe", "rank 2", "rank 48"]
    rows = zip(*(columns[name] for name in ("factor", "arm", "measure", "value")), strict=True)
    drift = {row[1]: row[3] for row in rows if row[0] == "arms" and row[2] == "drift"}
    # What is taken out grows with the rank.
    assert drift["rank 48"] < drift["rank 2"] < drift["plain"]
    text = Path(told["table"]).read_text()
    # Layers have 32 outputs at most, so that the larger rank is capped and counted in all four.
    row = next(
        line
        for line in text.splitlines()
        if line.startswith("| rank 48 |") and "columns" not in line and "none" in line
    )
    assert row.split("|")[4].strip() == "4"
    cells = sorted((tmp_path / "out" / "cells").glob("*/cell.json"))
    assert len(cells) == 4
    assert all(json.loads(cell.read_text())["settings"]["reestimate_every"] == 0 for cell in cells)
    before = [cell.stat().st_mtime_ns for cell in cells]
    assert loralign(*words).code == 0
    assert [cell.stat().st_mtime_ns for cell in cells] == before


def test_faults_are_told_in_one_line(loralign: Any, adapting: list[str]) -> None:
    assert_refused(loralign("sensitivity", *adapting, "--ranks", "0"), "--ranks", "use at least 1")
