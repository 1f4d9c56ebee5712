from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loralign.errors import ConfigError, DataError, StateError
from loralign.evaluation import MEASURES, Estimate, PairScores, Scores, compare_scores, preference_scores


def pair_scores(count: int = 40, seed: int = 0, gain: float = 0.0) -> PairScores:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 30, (count, 2))
    reference = -2.0 * tokens + rng.normal(size=(count, 2))
    shift = np.random.default_rng(seed + 1).normal(size=(count, 2)) + np.array([gain, -gain])
    return PairScores(
        tuple("abc"[i % 3] for i in range(count)),
        np.arange(count),
        tokens,
        reference + shift,
        reference,
        np.abs(shift),
        np.abs(shift) * 1.5,
    )


FOUR = PairScores(
    objectives=("a", "a", "b", "b"),
    rows=np.arange(4),
    tokens=np.array([[1, 2], [4, 2], [2, 2], [10, 5]]),
    log_prob=np.array([[-1.0, -4.0], [-8.0, -5.0], [-2.0, -3.0], [-9.0, -9.0]]),
    reference_log_prob=np.array([[-1.0, -3.0], [-9.0, -5.0], [-1.0, -3.0], [-9.0, -9.0]]),
    kl_policy_reference=np.array([[0.1, 0.2], [0.4, 0.2], [0.0, 0.0], [1.0, 0.5]]),
    kl_reference_policy=np.array([[0.2, 0.4], [0.8, 0.4], [0.0, 0.0], [2.0, 1.0]]),
)


def values(scores: Scores, objective: str) -> dict[str, float]:
    return {name: estimate.value for name, estimate in scores.objectives[objective].measures.items()}


def test_measures_by_hand() -> None:
    scores = preference_scores(FOUR, beta=0.5)
    assert list(scores.objectives) == ["a", "b"]
    assert values(scores, "a") == pytest.approx(
        {
            "accuracy_reward": 1.0,  # rewards 0 > −1 and 1 > 0
            "accuracy_summed": 0.5,  # −1 > −4, −8 < −5
            "accuracy_normalised": 1.0,  # −1 > −2, −2 > −2.5
            "margin": 0.5,
            "loss": math.log1p(math.exp(-0.5)),
            "log_ratio": (0 - 1 + 1 + 0) / 9,
            "kl_policy_reference": 0.9 / 9,
            "kl_reference_policy": 1.8 / 9,
        }
    )
    assert values(scores, "b") == pytest.approx(
        {
            "accuracy_reward": 0.25,  # −1 < 0, and a tie
            "accuracy_summed": 0.75,
            "accuracy_normalised": 1.0,  # −1 > −1.5, −0.9 > −1.8
            "margin": -0.25,
            "loss": (math.log1p(math.exp(0.5)) + math.log(2)) / 2,
            "log_ratio": -1 / 19,
            "kl_policy_reference": 1.5 / 19,
            "kl_reference_policy": 3 / 19,
        }
    )
    assert scores.overall.pairs == 4
    assert scores.overall.measures["kl_policy_reference"].value == pytest.approx(2.4 / 28)
    assert scores.macro["accuracy_reward"].value == pytest.approx(0.625)
    assert scores.worst["accuracy_reward"].objective == "b"
    assert scores.worst["loss"].objective == "b"
    assert scores.worst["kl_policy_reference"].objective == "a"
    assert "log_ratio" not in scores.worst
    assert set(scores.overall.measures) == set(MEASURES)


def test_intervals_hold_their_values_and_are_deterministic() -> None:
    scores = preference_scores(pair_scores(), resamples=500)
    for part in (*scores.objectives.values(), scores.overall):
        for name, estimate in part.measures.items():
            assert estimate.low < estimate.value < estimate.high, name
    assert preference_scores(pair_scores(), resamples=500) == scores
    assert preference_scores(pair_scores(), resamples=500, seed=1) != scores


def test_reference_itself_ties_everywhere() -> None:
    own = pair_scores().of_reference()
    measures = preference_scores(own, resamples=100).overall.measures
    assert measures["accuracy_reward"] == Estimate(0.5, 0.5, 0.5)
    assert measures["margin"].value == 0
    assert measures["loss"].value == pytest.approx(math.log(2))
    assert measures["kl_policy_reference"].value == measures["kl_reference_policy"].value == 0
    reference = pair_scores().reference_log_prob
    assert reference is not None
    assert measures["accuracy_summed"].value == pytest.approx((reference[:, 0] > reference[:, 1]).mean())


def test_without_reference_the_reward_is_the_log_probability() -> None:
    alone = replace(FOUR, reference_log_prob=None, kl_policy_reference=None, kl_reference_policy=None)
    measures = preference_scores(alone, beta=0.5, resamples=100).overall.measures
    assert set(measures) == {"accuracy_reward", "accuracy_summed", "accuracy_normalised", "margin", "loss"}
    assert measures["accuracy_reward"] == measures["accuracy_summed"]
    assert measures["margin"].value == pytest.approx(0.5 * (3 - 3 + 1 + 0) / 4)
    with pytest.raises(DataError, match="without a reference"):
        alone.of_reference()


def test_loss_of_an_extreme_margin_is_finite() -> None:
    wild = replace(FOUR, log_prob=FOUR.log_prob * 1e6)
    assert preference_scores(wild, resamples=100).overall.measures["loss"].value > 1e4


def test_chosen_objectives_come_in_their_order_and_alone() -> None:
    scores = preference_scores(pair_scores(), ["c", "a"], resamples=100)
    assert list(scores.objectives) == ["c", "a"]
    assert scores.overall.pairs == sum(part.pairs for part in scores.objectives.values()) == 27


def test_paired_differences() -> None:
    before, after = pair_scores(), pair_scores(gain=0.5)
    found = compare_scores(before, after, beta=0.5, resamples=500)
    first, second = (preference_scores(part, beta=0.5, resamples=500) for part in (before, after))
    assert found.kind == "difference"
    for name, estimate in found.overall.measures.items():
        expected = second.overall.measures[name].value - first.overall.measures[name].value
        assert estimate.value == pytest.approx(expected, abs=1e-12)
    # Every margin rises by the same 2·gain·β, so that its paired difference does not vary at all.
    margin = found.overall.measures["margin"]
    assert (margin.low, margin.high) == pytest.approx((0.5, 0.5))
    assert found.macro["margin"].value == pytest.approx(0.5)
    gains = {name: part.measures["accuracy_reward"].value for name, part in found.objectives.items()}
    assert gains[found.worst["accuracy_reward"].objective] == min(gains.values())


def test_no_change_compares_as_zero() -> None:
    found = compare_scores(pair_scores(), pair_scores(), resamples=100)
    assert set(found.overall.measures.values()) == {Estimate(0.0, 0.0, 0.0)}


def test_other_pairs_are_not_compared() -> None:
    with pytest.raises(DataError, match="not measured on the same pairs"):
        compare_scores(pair_scores(40), pair_scores(39))
    with pytest.raises(DataError, match="not measured on the same pairs"):
        compare_scores(pair_scores(), replace(pair_scores(), tokens=pair_scores().tokens + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beta": 0.0}, "beta is 0.0"), ({"confidence": 95}, "confidence is 95"), ({"resamples": 0}, "resamples is 0")],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preference_scores(FOUR, **options)


def test_unknown_objective_is_named() -> None:
    with pytest.raises(DataError, match=r"no pair belongs to 'z' .choose from 'a', 'b'"):
        preference_scores(FOUR, ["a", "z"])
    with pytest.raises(DataError, match="no pair"):
        preference_scores(FOUR.of_objectives([]))


def test_json_round_trip() -> None:
    for scores in (preference_scores(FOUR, resamples=100), compare_scores(FOUR, FOUR, resamples=100)):
        text = json.dumps(scores.to_json(), allow_nan=False)
        assert Scores.from_json(json.loads(text)) == scores


def without_macro(value: dict[str, object]) -> dict[str, object]:
    return {key: part for key, part in value.items() if key != "macro"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: {**value, "version": 99}, "not scores of version 1"),
        (lambda value: [value], "not scores"),
        (without_macro, "KeyError 'macro'"),
        (lambda value: {**value, "kind": "other"}, "kind 'other'"),
        (lambda value: {**value, "overall": 3}, "incomplete"),
        (lambda value: {**value, "objectives": []}, "incomplete"),
    ],
)
def test_other_json_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        Scores.from_json(change(preference_scores(FOUR, resamples=100).to_json()))


def test_table_has_a_row_for_everything() -> None:
    rows = preference_scores(FOUR, resamples=100).table(("accuracy_summed", "log_ratio", "unknown"))
    assert [row["objective"] for row in rows] == ["a", "b", "all pairs", "mean of objectives", "worst objective"]
    assert all(list(row) == ["objective", "pairs", "accuracy_summed", "log_ratio"] for row in rows)
    assert rows[0]["accuracy_summed"].startswith("0.500 [")
    assert rows[-1]["accuracy_summed"].endswith("] a")
    assert rows[-1]["log_ratio"] == ""
    difference = compare_scores(FOUR, FOUR, resamples=100).table()
    assert difference[0]["margin"] == "+0.00000 [+0.00000, +0.00000]"
