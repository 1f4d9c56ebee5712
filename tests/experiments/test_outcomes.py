from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import StateError
from loralign.evaluation import PairScores
from loralign.evaluation.bootstrap import Ratio
from loralign.evaluation.parquet import write_columns
from loralign.experiments.experiment import Arm, ArmResult
from loralign.experiments.finding import (
    arm_scores,
    difference_scores,
    difference_table,
    difference_to,
    lacking_notes,
    score_columns,
    score_table,
)
from loralign.experiments.measuring import Measures
from loralign.experiments.outcomes import measure, outcome
from loralign.experiments.seed_means import Samples, estimate, over_seeds, value
from loralign.experiments.store import CellRecord
from loralign.runs.kept_scores import SAMPLE_COLUMNS
from tests.experiments.made_up import records

ROWS = [
    ("task_loss", 0, "", 3.0, 1.0),
    ("task_loss", 1, "", 2.0, 1.5),
    ("drift", 0, "", 0.0, 0.1),
    ("drift", 1, "", 0.0, 0.3),
    ("refused", 0, "unsafe", 1.0, 1.0),
    ("refused", 1, "unsafe", 1.0, 0.0),
    ("refused", 2, "unsafe", 0.0, 0.0),
    ("refused", 3, "safe", 0.0, 1.0),
]


def adapted(directory: Path, rows: list[tuple[Any, ...]] = ROWS) -> CellRecord:
    columns = {name: [row[index] for row in rows] for index, name in enumerate(SAMPLE_COLUMNS)}
    write_columns(directory / "run" / "sample_scores.parquet", columns)
    return CellRecord("f" * 64, "adapt", "finished", {"seed": 0}, directory=directory)


def ratio(*values: float) -> Samples:
    return (Ratio(np.array(values, dtype=np.float64), np.ones(len(values))),)


def test_an_adaptations_measures(tmp_path: Path) -> None:
    found = {key: value(samples) for key, samples in outcome(adapted(tmp_path)).items()}
    assert found == pytest.approx(
        {
            "task_loss": 1.25,
            "task_gain": 1.25,
            "drift": 0.2,
            "refusal": 1 / 3,
            # One of the two refusals that the start gave is left.
            "retention": 1 / 2,
            "over_refusal": 1.0,
        }
    )


def test_a_start_that_refuses_nothing_has_nothing_to_keep(tmp_path: Path) -> None:
    found = outcome(adapted(tmp_path, [*ROWS[:4], ("refused", 0, "unsafe", 0.0, 1.0)]))
    assert "retention" not in found
    assert "over_refusal" not in found
    assert value(found["refusal"]) == 1


def test_a_driftcheck_takes_the_place_of_the_runs_own_refusals_where_it_was_asked(tmp_path: Path) -> None:
    measures = Measures(driftcheck="prompts").asked()
    record = replace(adapted(tmp_path), measures=measures)
    check = tmp_path / "measures" / measures[0].key / "check"
    for place, refused in ((check / "baseline", [1.0, 1.0, 0.0]), (check, [1.0, 0.0, 1.0])):
        columns = {"id": ["a", "b", "c"], "label": ["unsafe", "unsafe", "safe"], "refused": refused}
        write_columns(place / "responses.parquet", columns)
    found = outcome(record)
    assert [value(found[key]) for key in ("refusal", "retention", "over_refusal")] == [0.5, 0.5, 1.0]
    # A start that refuses nothing of the set has nothing to keep, whatever it refused of the run's own prompts.
    write_columns(check / "baseline/responses.parquet", {**columns, "refused": [0.0, 0.0, 0.0]})
    assert "retention" not in outcome(record)
    # Asked by another experiment, but not by this.
    assert value(outcome(replace(record, measures=()))["refusal"]) == pytest.approx(1 / 3)
    with pytest.raises(StateError, match=r"responses\.parquet"):
        outcome(replace(record, measures=Measures(driftcheck="prompts", prompts=8).asked()))
    write_columns(check / "baseline/responses.parquet", {"id": ["a"], "label": ["unsafe"], "refused": [1.0]})
    with pytest.raises(StateError, match="other prompts than its start"):
        outcome(record)


def test_task_scores_join_by_document(tmp_path: Path) -> None:
    record = replace(adapted(tmp_path), measures=Measures(tasks=("sst2",)).asked())
    (place,) = record.measured("task")
    place.mkdir(parents=True)
    lines = [
        {
            "arm": arm,
            "task": "local_sst2",
            "filter": "none",
            "values": {"acc": float(right), "brier": 0.2, "other": 1.0},
        }
        for arm, rights in (("base", (0, 0)), ("adapter", (1, 0)))
        for right in rights
    ]
    (place / "tasks.samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = [
        {"task": "local_sst2", "metric": metric, "filter": "none", "higher_is_better": higher}
        for metric, higher in (("acc", True), ("brier", False), ("other", None))
    ]
    (place / "tasks.json").write_text(json.dumps({"arms": {"adapter": {"scores": scores}}}))
    assert value(outcome(record)["task:local_sst2 acc"]) == 0.5
    # A search for the largest Brier score would find the worst model.
    (lower,) = (key for key in outcome(record) if "brier" in key)
    assert lower == "task:local_sst2 brier (less is better)"
    assert [measure(key).higher for key in sorted(outcome(record)) if key.startswith("task:")] == [True, False, True]
    (place / "tasks.json").unlink()
    with pytest.raises(StateError, match=r"tasks\.json"):
        outcome(record)


def aligned(directory: Path, **settings: Any) -> CellRecord:
    log_prob = np.array([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -2.0]])
    pairs = PairScores(
        objectives=("helpful", "helpful", "honest"),
        rows=np.arange(3),
        tokens=np.ones((3, 2), dtype=np.int64),
        log_prob=log_prob,
        reference_log_prob=np.full((3, 2), -1.5),
        kl_policy_reference=np.array([[0.1, 0.1], [0.3, 0.3], [0.6, 0.6]]),
        kl_reference_policy=np.zeros((3, 2)),
    )
    (directory / "run").mkdir(exist_ok=True)
    pairs.save(directory / "run" / "pair_scores.safetensors")
    return CellRecord("f" * 64, "align", "finished", {"seed": 0, "beta": 0.1, **settings}, directory=directory)


def test_an_alignments_measures_weigh_objectives_alike(tmp_path: Path) -> None:
    record = aligned(tmp_path)
    found = {key: value(samples) for key, samples in outcome(record).items()}
    assert (found["accuracy:helpful"], found["accuracy:honest"]) == (0.5, 1.0)
    assert (found["accuracy"], found["accuracy_worst"]) == (0.75, 0.5)
    # The worst is one statistic of all pairs, whichever objective it is in the resample.
    (worst,) = outcome(record)["accuracy_worst"]
    assert worst.size == 3
    assert worst.at(np.array([[0, 0, 2], [1, 1, 2], [2, 2, 2]])).tolist() == [1.0, 0.0, 1.0]
    # Mean over objectives, not over pairs: (0.2 + 0.6) / 2.
    assert found["reference_drift"] == pytest.approx(0.4)


def test_a_guarded_alignment_has_the_drift_and_the_refusals_of_its_probe(tmp_path: Path) -> None:
    adapted(tmp_path, ROWS[2:])
    plain, guarded = (outcome(aligned(tmp_path, guard=guard)) for guard in ("none", "auto"))
    kept = {key: value(guarded[key]) for key in guarded.keys() - plain.keys()}
    assert kept == pytest.approx({"drift": 0.2, "refusal": 1 / 3, "retention": 1 / 2, "over_refusal": 1.0})
    assert plain.keys() == {"accuracy:helpful", "accuracy:honest", *("accuracy", "accuracy_worst", "loss")} | {
        "reference_drift"
    }
    # A recipe with a guard but without pairs to validate on has what the guard measured all the same.
    (tmp_path / "run" / "pair_scores.safetensors").unlink()
    alone = CellRecord("f" * 64, "align", "finished", {"seed": 0, "guard": "auto"}, directory=tmp_path)
    assert outcome(alone).keys() == kept.keys()
    (tmp_path / "run" / "sample_scores.parquet").unlink()
    with pytest.raises(StateError, match=r"sample_scores\.parquet"):
        outcome(alone)


def test_a_damaged_cell_names_its_file(tmp_path: Path) -> None:
    record = adapted(tmp_path)
    (tmp_path / "run" / "sample_scores.parquet").write_bytes(b"no parquet")
    with pytest.raises(StateError, match=r"sample_scores\.parquet"):
        outcome(record)


VALUES = st.lists(st.floats(-3, 3, allow_nan=False), min_size=2, max_size=8)


@settings(max_examples=30, deadline=None)
@given(VALUES, st.data())
def test_the_mean_over_seeds_is_the_mean_of_their_values(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(st.floats(-3, 3), min_size=len(first), max_size=len(first)))
    joined = over_seeds([{"k": ratio(*first)}, {"k": ratio(*second)}], "k")
    assert joined is not None
    assert value(joined) == pytest.approx((np.mean(first) + np.mean(second)) / 2)


def test_a_measure_that_a_seed_lacks_has_no_mean_over_seeds() -> None:
    assert over_seeds([{"k": ratio(1.0)}, {}], "k") is None


def results() -> list[ArmResult]:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2, 40))
    plain = tuple({"task_gain": ratio(*row)} for row in samples)
    better = tuple({"task_gain": ratio(*(row + 0.1))} for row in samples)
    failed = ArmResult(Arm("broken"), (), (), {0: "no memory"})
    return [ArmResult(Arm("plain"), records(0, 1), plain), ArmResult(Arm("better"), records(0, 1), better), failed]


def test_differences_are_paired() -> None:
    found = difference_to(results(), "plain", "task_gain")
    assert set(found) == {"better"}
    # Every sample differs by 0.1, so there is no doubt, however much samples vary.
    better = found["better"].value
    assert (better.value, better.low, better.high) == pytest.approx((0.1, 0.1, 0.1))
    unpaired = estimate(results()[1].outcomes[0]["task_gain"])
    assert unpaired.high - unpaired.low > 0.2
    other = ArmResult(Arm("other"), records(0), ({"task_gain": ratio(1, 2, 3)},))
    assert difference_to([results()[0], other], "plain", "task_gain") == {}


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    # A seed is worth ten of what the arms differ by.
    plain = ArmResult(
        Arm("plain"), records(0, 1), tuple({"drift": ratio(*(seed + np.ones(4)))} for seed in (0.0, 10.0))
    )
    late = ArmResult(Arm("late"), records(1), ({"drift": ratio(*np.full(4, 11.5))},), {0: "no memory"})
    other = ArmResult(Arm("other"), records(2), late.outcomes)
    found = difference_to([plain, late, other], "plain", "drift")
    assert {name: (one.seeds, one.value.value) for name, one in found.items()} == {"late": (1, pytest.approx(0.5))}
    assert lacking_notes([plain, late, other], "plain") == [
        "late and plain are compared over seeds 1 alone: late lacks 0.",
        "other and plain are not compared: other lacks 0 and 1; plain lacks 2.",
    ]
    assert lacking_notes(results(), "plain") == []


def test_the_reduction_of_drift_is_that_of_the_means_and_paired_by_sample() -> None:
    rng = np.random.default_rng(0)
    drifts = [rng.uniform(0.1, 2.0, 30) for _ in range(3)]
    arms = [
        ArmResult(Arm(name), records(0, 1, 2), tuple({"drift": ratio(*(share * one))} for one in drifts))
        for name, share in (("plain", 1.0), ("full", 0.25))
    ]
    scores = difference_scores(arms, "plain")
    reduction = next(one for one in scores if one.measure == "drift_reduction")
    # Every sample drifts by a quarter, so there is no doubt of the share, however much they differ.
    assert (reduction.value.value, reduction.value.low, reduction.value.high) == pytest.approx((0.75,) * 3)
    still = [ArmResult(one.arm, records(0), ({"drift": ratio(0.0, 0.0)},)) for one in arms]
    assert [one.measure for one in difference_scores(still, "plain")] == ["drift"]


def test_the_numbers_hold_differences_and_what_they_are_to() -> None:
    columns = score_columns([*arm_scores(results()), *difference_scores(results(), "plain")])
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert [(row["arm"], row["reference"], row["seeds"]) for row in rows] == [
        ("plain", "", 2),
        ("better", "", 2),
        ("better", "plain", 2),
    ]
    assert [rows[-1][name] for name in ("value", "low", "lowest_seed")] == pytest.approx([0.1, 0.1, 0.1])


def test_tables_hold_every_arm_that_finished_and_the_spread_of_seeds() -> None:
    scores = arm_scores(results())
    assert [one.arm for one in scores] == ["plain", "better"]
    single = [value(one["task_gain"]) for one in results()[0].outcomes]
    assert (scores[0].lowest, scores[0].highest) == (min(single), max(single))
    assert scores[0].value.value == pytest.approx(np.mean(single))
    table = score_table(scores)
    assert table.headings == ("arm", "seeds", "task gain")
    assert [row[:2] for row in table.rows] == [("plain", "2"), ("better", "2")]
    compared = difference_table(difference_scores(results(), "plain"), "plain")
    assert compared is not None
    assert compared.rows == (("better", "2", "+0.100 [0.100, 0.100]"),)
