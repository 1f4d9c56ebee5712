from __future__ import annotations

import json
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
from loralign.experiments.finding import arm_scores, difference_table, difference_to, score_table
from loralign.experiments.outcomes import Samples, difference, estimate, outcome, over_seeds, value
from loralign.experiments.store import CellRecord
from loralign.runs.kept_scores import SAMPLE_COLUMNS

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


def test_a_driftcheck_takes_the_place_of_the_runs_own_refusals(tmp_path: Path) -> None:
    record = adapted(tmp_path)
    for place, refused in ((tmp_path / "check/baseline", [1.0, 1.0, 0.0]), (tmp_path / "check", [1.0, 0.0, 1.0])):
        columns = {"id": ["a", "b", "c"], "label": ["unsafe", "unsafe", "safe"], "refused": refused}
        write_columns(place / "responses.parquet", columns)
    found = outcome(record)
    assert [value(found[key]) for key in ("refusal", "retention", "over_refusal")] == [0.5, 0.5, 1.0]
    write_columns(tmp_path / "check/baseline/responses.parquet", {"id": ["a"], "label": ["unsafe"], "refused": [1.0]})
    with pytest.raises(StateError, match="other prompts than its start"):
        outcome(record)


def test_task_scores_join_by_document(tmp_path: Path) -> None:
    record = adapted(tmp_path)
    (tmp_path / "tasks.json").write_text("{}")
    lines = [
        {"arm": arm, "task": "local_sst2", "filter": "none", "values": {"acc": float(right)}}
        for arm, rights in (("base", (0, 0)), ("adapter", (1, 0)))
        for right in rights
    ]
    (tmp_path / "tasks.samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert value(outcome(record)["task:local_sst2 acc"]) == 0.5


def test_an_alignments_measures_weigh_objectives_alike(tmp_path: Path) -> None:
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
    (tmp_path / "run").mkdir()
    pairs.save(tmp_path / "run" / "pair_scores.safetensors")
    record = CellRecord("f" * 64, "align", "finished", {"seed": 0, "beta": 0.1}, directory=tmp_path)
    found = {key: value(samples) for key, samples in outcome(record).items()}
    assert (found["accuracy:helpful"], found["accuracy:honest"]) == (0.5, 1.0)
    assert (found["accuracy"], found["accuracy_worst"]) == (0.75, 0.5)
    # Mean over objectives, not over pairs: (0.2 + 0.6) / 2.
    assert found["reference_drift"] == pytest.approx(0.4)


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
    # The same seed twice says nothing new, so its interval is that of once.
    twice = over_seeds([{"k": ratio(*first)}] * 2, "k")
    assert twice is not None
    assert estimate(twice) == estimate(ratio(*first))


def test_a_measure_that_a_seed_lacks_has_no_mean_over_seeds() -> None:
    assert over_seeds([{"k": ratio(1.0)}, {}], "k") is None


def results() -> list[ArmResult]:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2, 40))
    plain = tuple({"task_gain": ratio(*row)} for row in samples)
    better = tuple({"task_gain": ratio(*(row + 0.1))} for row in samples)
    failed = ArmResult(Arm("broken"), (), (), {0: "no memory"})
    return [ArmResult(Arm("plain"), (), plain), ArmResult(Arm("better"), (), better), failed]


def test_differences_are_paired() -> None:
    found = difference_to(results(), "plain", "task_gain")
    assert set(found) == {"better"}
    # Every sample differs by 0.1, so there is no doubt, however much samples vary.
    assert (found["better"].value, found["better"].low, found["better"].high) == pytest.approx((0.1, 0.1, 0.1))
    unpaired = estimate(results()[1].outcomes[0]["task_gain"])
    assert unpaired.high - unpaired.low > 0.2
    assert difference(ratio(1, 2, 3), ratio(1, 2)) is None


def test_tables_hold_every_arm_that_finished_and_the_spread_of_seeds() -> None:
    scores = arm_scores(results())
    assert [one.arm for one in scores] == ["plain", "better"]
    single = [value(one["task_gain"]) for one in results()[0].outcomes]
    assert (scores[0].lowest, scores[0].highest) == (min(single), max(single))
    assert scores[0].value.value == pytest.approx(np.mean(single))
    table = score_table(scores)
    assert table.headings == ("arm", "seeds", "task gain")
    assert [row[:2] for row in table.rows] == [("plain", "2"), ("better", "2")]
    compared = difference_table(results(), "plain")
    assert compared is not None
    assert compared.rows[0][1] == "+0.100 [0.100, 0.100]"
