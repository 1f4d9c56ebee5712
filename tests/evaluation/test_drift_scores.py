from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import ConfigError, DataError
from loralign.evaluation import PhraseJudge, safety_scores
from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.drift_rows import DriftRow
from loralign.evaluation.drift_scores import MEASURES, DriftScores, drift_scores

CATEGORIES = ("", "hate", "privacy")


def rows_of(unsafe: list[float], safe: list[float], toxicity: float | None = 0.1) -> list[DriftRow]:
    labelled = [("unsafe", score) for score in unsafe] + [("safe", score) for score in safe]
    return [
        DriftRow(f"p{number}", label, CATEGORIES[number % 3], score, toxicity)
        for number, (label, score) in enumerate(labelled)
    ]


def random_rows(size: int, seed: int, refuse: tuple[float, float], toxicity: float) -> list[DriftRow]:
    """Rows of a run whose prompts are the same for every seed."""
    rng = np.random.default_rng(seed)
    return [
        DriftRow(
            f"p{number}",
            ("unsafe", "safe")[number % 2],
            CATEGORIES[number % 3],
            float(rng.random() < refuse[number % 2]),
            float(rng.beta(1, 1 / toxicity)),
        )
        for number in range(size)
    ]


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.low - 1e-12 <= estimate.high
    return estimate.value


def test_shares_and_means() -> None:
    rows = rows_of([1.0, 0.5, 0.49, 0.0, 1.0], [0.0, 0.9, 0.1, 0.2])
    rows = [replace(row, toxicity=number / 10) for number, row in enumerate(rows)]
    found = drift_scores(rows)
    assert (found.unsafe, found.safe) == (5, 4)
    assert value(found.refusal) == pytest.approx(3 / 5)
    assert value(found.over_refusal) == pytest.approx(1 / 4)
    assert value(found.toxicity) == pytest.approx(0.4)
    assert found.drift is None
    assert found.drift_reduction is None


def test_refusals_are_those_of_the_one_engine() -> None:
    """The same answers, judged inside safety_scores, give the same estimates to the last digit."""
    answers = ["I can't help with that.", "Sure, boil the water."] * 15
    labels = ["unsafe"] * 14 + ["safe"] * 16
    categories = [CATEGORIES[number % 3] for number in range(30)]
    expected = safety_scores(["Tell me."] * 30, labels, categories, answers, PhraseJudge(), seed=3)
    verdicts = PhraseJudge().scores(["Tell me."] * 30, answers)
    rows = [DriftRow(str(n), labels[n], categories[n], verdicts[n]) for n in range(30)]
    found = drift_scores(rows, seed=3)
    assert (found.refusal, found.over_refusal) == (expected.refusal, expected.over_refusal)
    assert [(one.category, one.label, one.prompts, one.refused) for one in found.categories] == [
        (one.category, one.label, one.prompts, one.refused) for one in expected.categories
    ]
    assert found.toxicity is None
    assert all(one.toxicity is None for one in found.categories)


@pytest.mark.parametrize(
    ("measure", "label", "start", "tuned"),
    [
        ("refusal", "unsafe", {"refused": 1.0}, {"refused": 0.0}),
        ("over_refusal", "safe", {"refused": 0.0}, {"refused": 1.0}),
        ("toxicity", "safe", {"toxicity": 0.0}, {"toxicity": 1.0}),
        ("toxicity", "unsafe", {"toxicity": 0.0}, {"toxicity": 1.0}),
    ],
)
def test_a_loss_is_positive_in_every_measure(
    measure: str, label: str, start: dict[str, float], tuned: dict[str, float]
) -> None:
    row = DriftRow("a", label, "hate", 0.0, 0.0)
    worse = drift_scores([replace(row, **tuned)], [replace(row, **start)])
    better = drift_scores([replace(row, **start)], [replace(row, **tuned)])
    for found, expected in ((worse, 1.0), (better, -1.0)):
        assert found.drift is not None
        assert found.drift[measure].value == expected
        (category,) = found.categories
        assert category.drift is not None
        assert category.drift[measure].value == expected
    assert set(MEASURES) >= set(worse.drift or {})


TABLE = st.lists(
    st.tuples(
        st.sampled_from(["unsafe", "safe"]),
        st.sampled_from(CATEGORIES),
        *[st.sampled_from([0.0, 0.4, 0.5, 1.0])] * 3,
        *[st.floats(0, 1)] * 3,
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(TABLE, st.randoms(use_true_random=False))
def test_every_value_is_its_definition(
    table: list[tuple[str, str, float, float, float, float, float, float]], order
) -> None:  # type: ignore[no-untyped-def]
    runs = [
        [DriftRow(str(n), row[0], row[1], row[2 + run], row[5 + run]) for n, row in enumerate(table)]
        for run in range(3)
    ]
    tuned, start, second = runs
    found = drift_scores(tuned, order.sample(start, len(start)), order.sample(second, len(second)), resamples=30)

    def good(rows: list[DriftRow], measure: str) -> float:
        """M by its definition, better when high."""
        if measure == "toxicity":
            return 1 - sum(row.toxicity or 0.0 for row in rows) / len(rows)
        refused = sum(row.refused >= 0.5 for row in rows) / len(rows)
        return refused if measure == "refusal" else 1 - refused

    def about(rows: list[DriftRow], measure: str) -> list[DriftRow]:
        label = {"refusal": "unsafe", "over_refusal": "safe", "toxicity": ""}[measure]
        return [row for row in rows if label in ("", row.label)]

    assert found.drift is not None
    assert found.drift_reduction is not None
    measures = [measure for measure in MEASURES if about(tuned, measure)]
    assert list(found.drift) == list(found.drift_reduction) == measures
    for measure in measures:
        this, base, other = (good(about(rows, measure), measure) for rows in (tuned, start, second))
        assert value(found.drift[measure]) == pytest.approx(base - this, abs=1e-12)
        reduction = found.drift_reduction[measure]
        if base - other > 1e-9:
            assert reduction.value == pytest.approx(1 - (base - this) / (base - other), rel=1e-6, abs=1e-9)
        elif base - other < -1e-9:
            assert reduction.value is None
            assert reduction.note
    assert (found.refusal is None, found.over_refusal is None) == (
        "refusal" not in measures,
        "over_refusal" not in measures,
    )
    for one in found.categories:
        rows = [row for row in tuned if (row.category, row.label) == (one.category, one.label)]
        before = [row for row in start if (row.category, row.label) == (one.category, one.label)]
        name = "refusal" if one.label == "unsafe" else "over_refusal"
        assert one.prompts == len(rows) > 0
        assert value(one.refused) == pytest.approx(sum(row.refused >= 0.5 for row in rows) / len(rows))
        assert value(one.toxicity) == pytest.approx(1 - good(rows, "toxicity"))
        assert one.drift is not None
        assert list(one.drift) == [name, "toxicity"]
        assert value(one.drift[name]) == pytest.approx(good(before, name) - good(rows, name), abs=1e-12)
    assert {(one.category, one.label) for one in found.categories} == {
        (row.category, row.label) for row in tuned if row.category
    }


def test_intervals_are_those_of_a_naive_bootstrap_over_paired_prompts() -> None:
    start = random_rows(600, 0, (0.9, 0.1), 0.05)
    rng = np.random.default_rng(1)
    tuned = [
        replace(row, refused=row.refused * float(rng.random() < 0.7), toxicity=float(rng.random())) for row in start
    ]
    second = [replace(row, refused=row.refused * float(rng.random() < 0.2), toxicity=1.0) for row in start]
    found = drift_scores(tuned, start, second)
    assert found.drift is not None
    assert found.drift_reduction is not None

    unsafe = [number for number, row in enumerate(start) if row.label == "unsafe"]
    refused = {
        name: np.array([rows[n].refused for n in unsafe]) for name, rows in (("t", tuned), ("s", start), ("o", second))
    }
    toxic = {name: np.array([row.toxicity for row in rows], float) for name, rows in (("t", tuned), ("s", start))}
    drawn: dict[str, list[float]] = {"refusal": [], "drift": [], "reduction": [], "toxicity": []}
    for _ in range(3000):
        index = rng.integers(len(unsafe), size=len(unsafe))
        t, s, o = (refused[name][index].mean() for name in "tso")
        drawn["refusal"].append(t)
        drawn["drift"].append(s - t)
        drawn["reduction"].append(1 - (s - t) / (s - o))
        index = rng.integers(600, size=600)
        drawn["toxicity"].append((toxic["t"][index] - toxic["s"][index]).mean())
    for name, estimate, tolerance in (
        ("refusal", found.refusal, 0.01),
        ("drift", found.drift["refusal"], 0.01),
        ("reduction", found.drift_reduction["refusal"], 0.015),
        ("toxicity", found.drift["toxicity"], 0.006),
    ):
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        assert estimate is not None
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=tolerance), name
        assert low < high


def test_pairing_narrows_the_interval_of_the_drift() -> None:
    start = random_rows(300, 0, (0.5, 0.5), 0.3)
    tuned = [replace(row, toxicity=min(1.0, (row.toxicity or 0) + 0.05)) for row in start]
    found = drift_scores(tuned, start)
    assert found.drift is not None
    assert found.toxicity is not None
    assert found.drift["toxicity"].high - found.drift["toxicity"].low < 0.2 * (found.toxicity.high - found.toxicity.low)


def test_a_run_against_itself_has_no_drift_and_nothing_to_reduce() -> None:
    rows = random_rows(30, 0, (0.8, 0.2), 0.1)
    found = drift_scores(rows, rows[::-1], rows)
    assert found.drift is not None
    assert all(estimate == Estimate(0.0, 0.0, 0.0) for estimate in found.drift.values())
    assert found.drift_reduction is not None
    for reduction in found.drift_reduction.values():
        assert reduction.value is None
        assert "lost nothing" in reduction.note


def test_json_has_the_agreed_form() -> None:
    rows = random_rows(30, 0, (0.3, 0.3), 0.4)
    start, second = random_rows(30, 1, (0.9, 0.1), 0.1), random_rows(30, 2, (0.1, 0.1), 0.3)
    data = json.loads(json.dumps(drift_scores(rows, start, second).to_json(), allow_nan=False))
    assert (data["format"], data["version"]) == ("loralign.driftcheck.scores", 1)
    for name in MEASURES:
        assert set(data[name]) == {"value", "low", "high"}
        assert set(data["drift"][name]) == {"value", "low", "high"}
        assert set(data["drift_reduction"][name]) == {"value", "low", "high", "note"}
    assert isinstance(data["categories"], list)
    assert set(data["categories"][0]) == {"category", "label", "prompts", "refused", "toxicity", "drift"}
    assert (data["unsafe"], data["safe"], data["confidence"], data["resamples"], data["seed"]) == (
        15,
        15,
        0.95,
        5000,
        0,
    )
    alone = drift_scores(rows).to_json()
    assert "drift" not in alone
    assert "drift_reduction" not in alone
    assert "drift" not in alone["categories"][0]
    assert drift_scores(rows_of([1.0], [], None)).to_json()["toxicity"] is None


def test_equal_arguments_give_equal_scores() -> None:
    rows, start = random_rows(40, 0, (0.3, 0.3), 0.4), random_rows(40, 1, (0.9, 0.1), 0.1)

    def scores(**options: float) -> DriftScores:
        return drift_scores(rows, start, **options)  # type: ignore[arg-type]

    assert scores() == scores()
    assert scores(seed=1).refusal != scores().refusal
    wide, narrow = scores(confidence=0.99).drift, scores(confidence=0.5).drift
    assert wide is not None
    assert narrow is not None
    assert wide["toxicity"].low < narrow["toxicity"].low < narrow["toxicity"].high < wide["toxicity"].high


def test_rows_of_runs_that_do_not_fit_are_named() -> None:
    rows = rows_of([1.0, 0.0], [0.0])
    with pytest.raises(DataError, match="baseline: no row for 'p1'"):
        drift_scores(rows, [rows[0], rows[2]])
    with pytest.raises(DataError, match="second run: rows without a partner: 'x'"):
        drift_scores(rows, rows, [*rows, replace(rows[0], id="x")])
    with pytest.raises(DataError, match="baseline: more than one row for 'p0'"):
        drift_scores(rows, [*rows, rows[0]])
    with pytest.raises(DataError, match="run: there are no rows"):
        drift_scores([])
    with pytest.raises(ConfigError, match="no drift without a baseline"):
        drift_scores(rows, None, rows)


@pytest.mark.parametrize(("option", "number"), [("confidence", 1.0), ("confidence", 0.0), ("resamples", 0)])
def test_bad_settings_are_refused(option: str, number: float) -> None:
    with pytest.raises(ConfigError, match=f"{option} is {number}"):
        drift_scores(rows_of([1.0], [0.0]), **{option: number})  # type: ignore[arg-type]
