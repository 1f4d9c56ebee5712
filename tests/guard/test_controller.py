from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loralign.errors import ConfigError, NonFiniteError, StateError
from loralign.guard.controller import DriftController, ascent_rate

drifts = st.floats(0.0, 1e6)


class Plant:
    """A quadratic task ½·Σ c (θ − θ*)² with drift ‖θ‖², trained with the penalty strength·μ·‖θ‖²."""

    def __init__(self, strength: float = 1.0, optimizer: str = "gd", start: float = 0.0) -> None:
        self.curvature = torch.tensor([1.0, 0.5, 0.1]).repeat(10)
        self.optimum = torch.full((30,), 0.3)
        self.strength = strength
        self.theta = (start * self.optimum).requires_grad_()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD([self.theta], 0.05) if optimizer == "gd" else torch.optim.Adam([self.theta], 0.01)
        )

    @property
    def drift(self) -> float:
        return float(self.theta.detach().square().sum())

    def train(self, multiplier: float, steps: int = 5) -> float:
        for _ in range(steps):
            task = 0.5 * (self.curvature * (self.theta - self.optimum) ** 2).sum()
            self.optimizer.zero_grad()
            (task + 0.5 * self.strength * multiplier * (self.theta**2).sum()).backward()
            self.optimizer.step()
        return self.drift


def controlled(plant: Plant, controller: DriftController, updates: int) -> list[float]:
    return [_one(plant, controller) for _ in range(updates)]


def _one(plant: Plant, controller: DriftController) -> float:
    drift = plant.train(controller.multiplier)
    controller.update(drift)
    return drift


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
@pytest.mark.parametrize("strength", [0.02, 1.0, 20.0])
def test_drift_comes_to_the_budget_whatever_multiplier_that_takes(strength: float, optimizer: str) -> None:
    # Without a guard the drift is 2.7.
    drifts = controlled(Plant(strength, optimizer), DriftController(0.5), 300)
    assert sum(drifts[-50:]) / 50 == pytest.approx(0.5, rel=0.02)
    # Adam itself goes round in a small circle where the penalty is steep.
    assert drifts[-50:] == pytest.approx([0.5] * 50, rel=0.2 if (strength, optimizer) == (20.0, "adam") else 0.001)


def short_run(strength: float, budget: float, updates: int, rate: float) -> float:
    """The drift at the end of a run that covers the same way in however few steps, as a share of the budget."""
    plant, controller = Plant(strength, "adam"), DriftController(budget, rate=rate)
    for group in plant.optimizer.param_groups:
        group["lr"] = 0.6 / (5 * updates)
    return controlled(plant, controller, updates)[-1] / budget


@pytest.mark.parametrize("updates", [3, 5, 9])
def test_few_updates_come_nearer_to_the_budget_with_the_rate_for_them(updates: int) -> None:
    """How far off the runs end, in both directions: |log| of the share of the budget, mean over tasks and budgets."""
    cases = [(strength, budget) for strength in (0.1, 0.3, 1.0, 3.0, 10.0) for budget in (0.05, 0.2, 0.5, 1.0)]
    off = {
        rate: sum(abs(math.log(short_run(*case, updates, rate))) for case in cases) / len(cases)
        for rate in (0.2, ascent_rate(updates))
    }
    assert off[ascent_rate(updates)] < 0.85 * off[0.2]


def test_the_rate_is_the_usual_one_where_there_is_time_or_no_end_is_known() -> None:
    assert [ascent_rate(updates) for updates in (None, 0, 1, 3, 6, 15, 1000)] == [0.2, 0.2, 1.0, 1.0, 0.5, 0.2, 0.2]


def test_drift_above_the_budget_comes_down_to_it_and_stays() -> None:
    plant = Plant(start=1.0)
    assert plant.drift == pytest.approx(2.7)
    drifts = controlled(plant, DriftController(0.5, initial=0.0), 200)
    assert max(drifts) <= 2.7 + 1e-6
    crossing = next(index for index, drift in enumerate(drifts) if drift <= 0.51)
    assert all(drift > 0.5 for drift in drifts[: crossing - 1])
    assert min(drifts[crossing:]) > 0.4
    assert drifts[-1] == pytest.approx(0.5, rel=0.01)


def test_looking_ahead_keeps_the_overshoot_small() -> None:
    drifts = controlled(Plant(), DriftController(0.5), 300)
    assert max(drifts) < 1.1 * 0.5


def test_a_slack_budget_lets_the_multiplier_go_to_its_lower_bound() -> None:
    for low in (0.02, 0.0):
        plant, controller = Plant(), DriftController(5.0, bounds=(low, 10.0))
        drifts = controlled(plant, controller, 300)
        assert controller.multiplier == low
        assert not controller.over
    assert drifts[-1] == pytest.approx(2.7, rel=0.05)


def test_a_bound_is_left_at_once() -> None:
    controller = DriftController(1.0, bounds=(0.0, 5.0))
    for _ in range(500):
        controller.update(100.0)
    assert controller.multiplier == 5.0
    controller.update(0.0)
    assert controller.multiplier < 5.0
    for _ in range(500):
        controller.update(0.0)
    assert controller.multiplier == 0.0
    controller.update(2.0)
    assert controller.multiplier > 0.0


@given(st.lists(drifts, max_size=30), st.floats(0.0, 2.0), st.floats(0.1, 50.0), st.floats(0.0, 5.0))
def test_the_multiplier_stays_within_its_bounds(
    measured: list[float], low: float, width: float, entropy_gain: float
) -> None:
    bounds = (low, low + width)
    controller = DriftController(0.5, bounds=bounds, rate=1.0, entropy_gain=entropy_gain)
    for drift in measured:
        assert bounds[0] <= controller.update(drift, drift / 3) <= bounds[1]


@given(st.lists(drifts, max_size=10), drifts, drifts)
def test_more_drift_never_gives_a_smaller_multiplier(past: list[float], one: float, other: float) -> None:
    pair = [DriftController(0.5), DriftController(0.5)]
    for controller in pair:
        for drift in past:
            controller.update(drift)
    less, more = (c.update(d) for c, d in zip(pair, sorted((one, other)), strict=True))
    assert less <= more


@given(st.floats(0.0, 100.0))
def test_at_the_budget_nothing_moves(initial: float) -> None:
    controller = DriftController(0.5, initial=initial)
    controller.update(0.5)
    before = controller.multiplier
    assert controller.update(0.5) == pytest.approx(before)


def test_entropy_above_the_starts_lowers_the_multiplier_while_it_lasts() -> None:
    plain, gained = DriftController(0.5), DriftController(0.5, entropy_gain=2.0)
    plain.update(0.6)
    assert gained.update(0.6, 0.25) == pytest.approx(plain.multiplier * math.exp(-0.5))
    # Lower entropy than the start's raises nothing, and the dual variable has not been touched.
    assert gained.update(0.6, -1.0) == pytest.approx(plain.update(0.6))
    assert plain.update(0.6, 3.0) == pytest.approx(gained.update(0.6, 0.0))


def test_an_undecided_model_is_still_brought_to_the_budget() -> None:
    plant, controller = Plant(), DriftController(0.5, entropy_gain=1.0)
    for _ in range(300):
        controller.update(plant.train(controller.multiplier), 1.0)
    assert plant.drift == pytest.approx(0.5, rel=0.02)


@given(st.lists(st.tuples(drifts, st.none() | st.floats(-1, 1)), max_size=12), st.lists(drifts, max_size=6))
def test_a_resumed_controller_goes_on_exactly(past: list[tuple[float, float | None]], future: list[float]) -> None:
    one, other = DriftController(0.3, entropy_gain=0.7), DriftController(0.3, entropy_gain=0.7)
    for drift, rise in past:
        one.update(drift, rise)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (other.multiplier, other.trend, other.over) == (one.multiplier, one.trend, one.over)
    assert [other.update(drift) for drift in future] == [one.update(drift) for drift in future]


def test_trend_and_over_are_of_the_last_measurements() -> None:
    controller = DriftController(0.5)
    assert (controller.trend, controller.over) == (0.0, False)
    controller.check_start(0.0)
    controller.update(0.4)
    assert controller.trend == pytest.approx(0.4)
    assert not controller.over
    controller.update(0.55)
    assert controller.trend == pytest.approx(0.15)
    assert controller.over


def test_the_initial_multiplier_is_clipped_to_the_bounds() -> None:
    assert DriftController(0.5, bounds=(0.0, 0.5)).multiplier == 0.5
    assert DriftController(0.5, bounds=(2.0, 5.0)).multiplier == 2.0


@pytest.mark.parametrize("budget", [0.0, -0.1, math.inf, math.nan])
def test_an_impossible_budget_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"drift_budget: a drift budget of .*nats per response token"):
        DriftController(budget)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0.0),
        ("rate", math.nan),
        ("initial", -1.0),
        ("entropy_gain", -0.1),
        ("bounds", (1.0, 1.0)),
        ("bounds", (-1.0, 1.0)),
        ("bounds", (0.0, math.inf)),
    ],
)
def test_an_impossible_setting_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        DriftController(0.5, **{name: value})  # type: ignore[arg-type]


def test_a_budget_exceeded_at_the_start_is_refused() -> None:
    controller = DriftController(0.05)
    controller.check_start(0.05)
    with pytest.raises(ConfigError, match=r"0\.05 nats per token is exceeded at the start, by a drift of 0\.06"):
        controller.check_start(0.06)
    with pytest.raises(NonFiniteError, match="drift is nan"):
        controller.check_start(math.nan)


def test_a_measurement_that_is_not_finite_changes_nothing() -> None:
    controller = DriftController(0.5, entropy_gain=1.0)
    controller.update(0.7, 0.1)
    before = controller.state_dict()
    with pytest.raises(NonFiniteError, match="drift is inf"):
        controller.update(math.inf, 0.2)
    with pytest.raises(NonFiniteError, match="entropy is nan"):
        controller.update(0.4, math.nan)
    assert controller.state_dict() == before


@pytest.mark.parametrize("change", [{"dual": None}, {"dual": math.nan}, {"relief": "much"}, {"drift": []}])
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    controller = DriftController(0.5)
    before = controller.state_dict()
    with pytest.raises(StateError, match="controller"):
        controller.load_state_dict({**before, **change})
    with pytest.raises(StateError, match="dual"):
        controller.load_state_dict({})
    assert controller.state_dict() == before
