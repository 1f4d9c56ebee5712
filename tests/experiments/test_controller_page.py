from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loralign.errors import ConfigError
from loralign.experiments.cell import base_settings, make_cell
from loralign.experiments.controller import WEIGHTS, budget_arms, weight_arms
from loralign.experiments.controller_page import against_sweep, budget_rows
from loralign.experiments.experiment import ArmResult
from loralign.experiments.finding import RESULTS, arm_scores
from loralign.training import GuardConfig
from tests.experiments.made_up import broken, made_up


def held(budget: float, gain: float, *drifts: float) -> ArmResult:
    seeds = [{"drift": drift, "task_gain": gain} for drift in drifts]
    return made_up(f"budget {budget:g}", {"drift_budget": budget}, *seeds)


def fixed(factor: float, gain: float, drift: float) -> ArmResult:
    values = {"drift": drift, "task_gain": gain}
    weights = {"lambda_alignment": 10 * factor, "lambda_stability": factor, "lambda_collision": factor}
    return made_up(f"λ × {factor:g}", {"drift_budget": None, **weights}, values, values)


HELD = [held(0.01, 0.05, 0.03, 0.03), held(0.05, 0.31, 0.04, 0.045), held(0.1, 0.35, 0.12, 0.07)]
FIXED = [fixed(0.1, 0.5, 0.3), fixed(1, 0.4, 0.08), fixed(3, 0.3, 0.04), fixed(10, 0.1, 0.02)]


def test_beside_every_budget_stands_the_best_fixed_arm_that_keeps_to_it() -> None:
    rows = budget_rows(HELD, FIXED, arm_scores([*HELD, *FIXED]))
    assert [row.best for row in rows] == [None, "λ × 3", "λ × 1"]
    assert [row.met for row in rows] == ["no", "yes", "on average"]
    gains = [None if row.difference is None else row.difference.value.value for row in rows]
    assert gains == [None, pytest.approx(0.01), pytest.approx(-0.05)]


def test_the_sentence_counts_budgets_and_the_table_costs() -> None:
    page = against_sweep(HELD, FIXED).page
    assert page.headline == (
        "The controller met 2 of 3 budgets with one run each, drifting by 85\u00a0% to 300\u00a0% of them; the best of "
        "4 fixed weights met 2. Of the 2 that both met, the controller's task gain is higher in 1, lower in 1, and not "
        "told apart in 0."
    )
    table = dict(page.tables)["Budget by budget"]
    assert [row[0] for row in table.rows] == ["0.01", "0.05", "0.1"]
    assert table.rows[0][5:9] == ("none keeps to it", "", "", "")
    assert [row[2] for row in table.rows] == ["300\u00a0%", "85\u00a0%", "95\u00a0%"]
    assert {row[-2:] for row in table.rows} == {("1", "4")}
    lines = [shape["x0"] for shape in page.charts[0].figure.to_dict()["layout"]["shapes"]]
    assert lines == [0.01, 0.05, 0.1]
    families = {trace.name: list(trace.x) for trace in page.charts[0].figure.data}
    assert families["controller"] == pytest.approx([0.03, 0.0425, 0.095])
    assert families["fixed λ"] == pytest.approx([0.3, 0.08, 0.04, 0.02])


def test_one_seed_tells_nothing_apart() -> None:
    one = [made_up("budget 0.1", {"drift_budget": 0.1}, {"drift": 0.08, "task_gain": 0.9})]
    page = against_sweep(one, [made_up("λ × 1", dict.fromkeys(WEIGHTS, 1.0), {"drift": 0.08, "task_gain": 0.1})]).page
    assert page.headline.endswith("lower in 0, and not told apart in 1. One seed, so nothing is settled.")


def test_an_arm_with_a_failed_seed_is_no_candidate() -> None:
    lucky = broken("λ × 2", dict.fromkeys(WEIGHTS, 2.0), {"drift": 0.01, "task_gain": 9.0})
    page = against_sweep(HELD, [*FIXED, lucky]).page
    assert {row[5] for row in dict(page.tables)["Budget by budget"].rows} == {"none keeps to it", "λ × 3", "λ × 1"}
    assert any("λ × 2, seed 7, failed: out of memory" in note for note in page.notes)
    # What was asked and failed is no budget that was met, and what failed is none of the weights that were tried.
    lost = broken("budget 0.2", {"drift_budget": 0.2})
    headline = against_sweep([*HELD, lost], [*FIXED, lucky]).page.headline
    assert headline.startswith("The controller met 2 of 4 budgets")
    # Nothing is known of the fourth.
    assert "the best of 4 fixed weights met 2 of 3. " in headline
    assert "the best of 4 fixed weights met 2. " in page.headline
    only = broken("budget 0.1", {"drift_budget": 0.1})
    with pytest.raises(ConfigError, match=r"no arm with a budget has finished: budget 0\.1, seed 7"):
        against_sweep([only], FIXED)


def test_budgets_that_ask_for_nothing_are_told() -> None:
    free = made_up("λ × 0", dict.fromkeys(WEIGHTS, 0.0), *[{"drift": 0.09, "task_gain": 0.5}] * 2)
    held_to = [*FIXED, free]
    assert "Without a guard drift is 0.0900, so that 0.1 asks for nothing." in against_sweep(HELD, held_to).page.notes
    tight = made_up("λ × 0", dict.fromkeys(WEIGHTS, 0.0), *[{"drift": 0.3, "task_gain": 0.5}] * 2)
    assert not any("Without a" in note for note in against_sweep(HELD, [*FIXED, tight]).page.notes)
    assert any(note.startswith("Without a factor of 0") for note in against_sweep(HELD, FIXED).page.notes)


def test_the_numbers_hold_budgets_and_weights(tmp_path: Path) -> None:
    against_sweep(HELD, FIXED).write(tmp_path)
    table = pq.read_table(tmp_path / RESULTS).to_pylist()
    gains = {(row["arm"], row["reference"]): row["value"] for row in table if row["reference"]}
    assert gains == pytest.approx({("budget 0.05", "λ × 3"): 0.01, ("budget 0.1", "λ × 1"): -0.05})
    rows = {row["arm"]: row for row in table}
    assert rows["budget 0.05"]["drift_budget"] == 0.05
    assert math.isnan(rows["λ × 3"]["drift_budget"])
    assert rows["λ × 3"]["lambda_alignment"] == 30


def test_a_factor_multiplies_all_three_weights_as_a_budget_does(adapting: list[str]) -> None:
    base = base_settings("adapt", [*adapting, "--drift_budget", "0.3"])
    (arm,) = weight_arms(base, [3.0])
    cell = make_cell("adapt", base, arm.overrides, 0)
    assert cell.settings["drift_budget"] is None
    config = GuardConfig(**{name: cell.settings[name] for name in WEIGHTS})
    assert config.penalty_weights() == GuardConfig().penalty_weights(3.0)
    assert [arm.overrides for arm in budget_arms([0.2, 0.1])] == [{"drift_budget": 0.1}, {"drift_budget": 0.2}]
    assert [arm.name for arm in weight_arms(base, [3.0, 0.0, 10.0])] == ["λ × 0", "λ × 3", "λ × 10"]


@pytest.mark.parametrize("values", [[], [0.1, 0.1], [-1.0], [math.inf], [math.nan]])
def test_budgets_and_factors_that_will_not_do_are_refused(values: Sequence[float]) -> None:
    with pytest.raises(ConfigError, match="--budgets"):
        budget_arms(values)
    with pytest.raises(ConfigError, match="--factors"):
        weight_arms(vars(GuardConfig()), values)


def test_a_factor_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="are all 0"):
        weight_arms({"guard_mode": "penalty", **dict.fromkeys(WEIGHTS, 0.0)}, [1.0])
    with pytest.raises(ConfigError, match="--guard_mode: project has no weights to multiply"):
        weight_arms(vars(GuardConfig(guard_mode="project")), [1.0])
