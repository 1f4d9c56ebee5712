from __future__ import annotations

import dataclasses
import json
import math

import pytest

from loralign.errors import StateError
from loralign.guard.monitors import GuardMonitors, GuardWarning, MonitorThresholds, aligned_late, fallen, unstable


def codes(warnings: list[GuardWarning]) -> list[str]:
    return [warning.code for warning in warnings]


def test_refusals_down_more_than_ten_points_are_told() -> None:
    monitors = GuardMonitors()
    assert monitors.refusals(0.95, -1) == []
    assert monitors.refusals(0.85, 50) == []
    (warning,) = monitors.refusals(0.84, 100)
    assert warning.code == "refusals_lost"
    assert warning.message == "refusals of unsafe prompts fell from 95% at the start to 84%"
    assert "lambda_alignment" in warning.fix
    assert warning.step == 100


def test_a_task_score_down_more_than_two_points_while_refusals_hold_is_told() -> None:
    monitors = GuardMonitors()
    monitors.refusals(0.95, -1)
    assert monitors.task_score(0.80, -1) == []
    assert monitors.task_score(0.78, 50) == []
    (warning,) = monitors.task_score(0.77, 100)
    assert warning.code == "safe_but_useless"
    assert warning.message == (
        "safe but useless: the task's score fell from 80.0% at the start to 77.0% while the refusals hold"
    )
    assert "drift_budget" in warning.fix


def test_a_lost_task_is_not_safe_but_useless_when_refusals_are_lost_too() -> None:
    monitors = GuardMonitors()
    monitors.refusals(0.95, -1)
    monitors.task_score(0.80, -1)
    assert codes(monitors.refusals(0.5, 50)) == ["refusals_lost"]
    assert monitors.task_score(0.5, 50) == []


def test_a_lost_task_is_told_once_the_refusals_are_known_to_hold() -> None:
    monitors = GuardMonitors()
    monitors.task_score(0.80, -1)
    assert monitors.task_score(0.70, 50) == []
    assert codes(monitors.refusals(0.95, 60)) == ["safe_but_useless"]


def test_a_task_loss_that_rises_is_told_where_no_score_is_known() -> None:
    monitors = GuardMonitors()
    monitors.refusals(0.95, -1)
    assert monitors.task_loss(1.500, -1) == []
    assert monitors.task_loss(1.520, 50) == []
    (warning,) = monitors.task_loss(1.521, 100)
    assert "the task's loss rose from 1.500 at the start to 1.521" in warning.message
    # Where a score is known the loss does not count.
    scored = GuardMonitors()
    scored.refusals(0.95, -1)
    scored.task_score(0.8, -1)
    scored.task_loss(1.5, -1)
    assert scored.task_loss(3.0, 50) == []


def test_drift_within_its_budget_stands_for_refusals_that_are_not_measured() -> None:
    monitors = GuardMonitors()
    monitors.task_loss(1.5, -1)
    monitors.drift(0.06, 0.05, 10)
    assert monitors.task_loss(1.6, 10) == []
    assert codes(monitors.drift(0.05, 0.05, 20)) == ["safe_but_useless"]
    measured = GuardMonitors()
    measured.refusals(0.95, -1)
    measured.refusals(0.5, 10)
    measured.task_loss(1.5, -1)
    measured.drift(0.01, 0.05, 10)
    assert measured.task_loss(1.6, 10) == []


def test_an_unstable_subspace_is_told_with_its_worst_layer() -> None:
    monitors = GuardMonitors()
    assert monitors.stability(0.85, 1000) == []
    assert monitors.stability({"layers.0": 1.0, "layers.1": 0.7}, 1500) == []
    (warning,) = monitors.stability({"layers.0": 0.9, "layers.1": 0.7}, 2000)
    assert warning.code == "unstable_subspace"
    assert "0.80; least in layers.1 with 0.70" in warning.message
    assert codes(GuardMonitors().stability(0.84, 0)) == ["unstable_subspace"]


def test_parts_that_point_along_each_other_are_told_late_in_training_only() -> None:
    monitors = GuardMonitors(total_steps=300)
    assert monitors.coupling(-0.9, 198) == []
    assert monitors.coupling(0.30, 199) == []
    (warning,) = monitors.coupling(-0.31, 199)
    assert warning.code == "parts_aligned"
    assert "0.31 with 67% of the training done" in warning.message
    assert GuardMonitors().coupling(0.9, 10**6) == []


def test_a_signature_is_told_once_and_again_only_after_it_has_ceased() -> None:
    monitors = GuardMonitors()
    rates = (0.9, 0.5, 0.4, 0.5, 0.9, 0.9, 0.5, 0.5)
    assert [len(monitors.refusals(rate, step)) for step, rate in enumerate(rates)] == [0, 1, 0, 0, 0, 0, 1, 0]
    assert [warning.step for warning in monitors.warnings] == [1, 6]


def test_signatures_are_told_independently() -> None:
    monitors = GuardMonitors(total_steps=10)
    monitors.refusals(0.9, -1)
    assert codes(monitors.stability(0.1, 8)) == ["unstable_subspace"]
    assert codes(monitors.coupling(0.5, 8)) == ["parts_aligned"]
    assert codes(monitors.refusals(0.1, 8)) == ["refusals_lost"]
    assert codes(monitors.warnings) == ["unstable_subspace", "parts_aligned", "refusals_lost"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_count_as_not_measured(value: float) -> None:
    monitors = GuardMonitors(total_steps=1)
    before = monitors.state_dict()
    assert monitors.refusals(value, 0) == []
    assert monitors.task_score(value, 0) == []
    assert monitors.task_loss(value, 0) == []
    assert monitors.stability(value, 0) == []
    assert monitors.stability({"a": 0.1, "b": value}, 0) == []
    assert monitors.coupling(value, 0) == []
    assert monitors.drift(value, 0.1, 0) == []
    assert monitors.state_dict() == before


def test_thresholds_are_settings() -> None:
    loose = MonitorThresholds(refusal_drop=0.5, similarity=0.2)
    monitors = GuardMonitors(loose)
    monitors.refusals(0.9, -1)
    assert monitors.refusals(0.5, 1) == []
    assert codes(monitors.refusals(0.3, 2)) == ["refusals_lost"]
    assert monitors.stability(0.3, 2) == []
    assert dataclasses.replace(loose) == loose


def test_exactly_at_a_threshold_nothing_is_wrong() -> None:
    assert 0.9 - 0.8 < 0.1 < 0.3 - 0.2 + 1e-9
    assert not fallen(0.9, 0.8, 0.1)
    assert not fallen(0.3, 0.2, 0.1)
    assert fallen(0.9, 0.79, 0.1)
    assert not unstable(0.85)
    assert unstable(0.849)
    assert not aligned_late(0.3, 1.0)
    assert aligned_late(-0.301, 2 / 3)
    assert not aligned_late(0.9, 0.66)


def test_resumed_monitors_go_on_exactly() -> None:
    def feed(monitors: GuardMonitors, steps: range) -> list[GuardWarning]:
        told = []
        for step in steps:
            told += monitors.refusals((0.9, 0.7, 0.9)[step % 3], step)
            told += monitors.task_loss(1.5 + 0.03 * (step % 2), step)
            told += monitors.coupling(0.1 * (step % 5), step)
            told += monitors.drift(0.01 * step, 0.05, step)
        return told

    whole, first, second = GuardMonitors(total_steps=20), GuardMonitors(total_steps=20), GuardMonitors()
    told = feed(whole, range(20))
    before = feed(first, range(10))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + feed(second, range(10, 20)) == told == second.warnings
    assert second.state_dict() == whole.state_dict()
    assert {"refusals_lost", "safe_but_useless", "parts_aligned"} == set(codes(told))


@pytest.mark.parametrize("name", ["total_steps", "start", "latest", "warnings"])
@pytest.mark.parametrize("value", ["damaged", [3], {"a": "b"}])
def test_a_damaged_state_is_refused(name: str, value: object) -> None:
    monitors = GuardMonitors()
    monitors.refusals(0.9, -1)
    before = monitors.state_dict()
    with pytest.raises(StateError, match="monitors"):
        monitors.load_state_dict({**before, name: value})
    with pytest.raises(StateError, match=name):
        monitors.load_state_dict({key: value for key, value in before.items() if key != name})
    assert monitors.state_dict() == before
