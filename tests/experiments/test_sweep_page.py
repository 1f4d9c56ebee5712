from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loralign.errors import ConfigError
from loralign.experiments.experiment import ArmResult
from loralign.experiments.finding import RESULTS, arm_scores
from loralign.experiments.search_plan import SearchPlan
from loralign.experiments.selection import Known, Limit, best_within, estimates, nearest
from loralign.experiments.space import Choices
from loralign.experiments.sweep import Wanted
from loralign.experiments.sweep_page import swept
from tests.experiments.made_up import broken, made_up

PLAN = SearchPlan((Choices("lora_r", (4, 8)),), ("retention", "task_gain"))


def trial(number: int, retention: float, gain: float, drift: float) -> ArmResult:
    values = {"retention": retention, "task_gain": gain, "drift": drift}
    return made_up(f"{number}: lora_r {number}", {"lora_r": number}, values, values)


# The third is beaten by the second in both, and drifts least of those that gain 0.3.
TRIALS = [trial(1, 0.9, 0.1, 0.02), trial(2, 0.6, 0.4, 0.08), trial(3, 0.5, 0.3, 0.04), trial(4, 0.2, 0.5, 0.3)]
FAILED = broken("5: lora_r 5", {"lora_r": 5}, {"retention": 1.0, "task_gain": 9.0, "drift": 0.0})


def known() -> Known:
    return estimates(arm_scores(TRIALS))


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ([], 4),
        ([Limit("drift", 0.1)], 2),
        ([Limit("drift", 0.05)], 3),
        ([Limit("retention", 0.55)], 2),
        ([Limit("retention", 0.55), Limit("drift", 0.05)], 1),
        ([Limit("drift", 0.001)], None),
        ([Limit("accuracy", 0.0)], None),
    ],
)
def test_the_best_within_limits(limits: list[Limit], chosen: int | None) -> None:
    found = best_within(known(), limits, "task_gain")
    assert found == (None if chosen is None else f"{chosen}: lora_r {chosen}")


def test_the_bound_itself_is_within_and_less_is_better_of_a_loss() -> None:
    exact = estimates(arm_scores([made_up("a", {}, {"drift": 0.25, "task_loss": 2.0}, spread=0.0)]))
    assert best_within(exact, [Limit("drift", 0.25)], "task_loss") == "a"
    both = estimates(arm_scores([made_up(name, {}, {"task_loss": loss}) for name, loss in (("a", 2.0), ("b", 1.0))]))
    assert best_within(both, [], "task_loss") == "b"
    assert nearest(known(), [Limit("drift", 0.001)]) == "1: lora_r 1"
    assert nearest(known(), [Limit("retention", 0.95)]) == "1: lora_r 1"


def test_a_recommendation_names_its_budget_its_values_and_how_to_use_it() -> None:
    page = swept("sweep adapt", [*TRIALS, FAILED], PLAN, [Limit("drift", 0.05)]).page
    assert page.headline.startswith("Recommended within drift ≤ 0.05: trial 3: lora_r 3, with task gain 0.300 [")
    assert "reaches beyond" not in page.headline
    assert "To use it: --lora_r 3" in page.notes
    assert any("seed 7, failed: out of memory" in note for note in page.notes)
    table = dict(page.tables)["Pareto front"]
    assert table.headings[:2] == ("trial", "lora_r")
    # What another measure than the front's two decided is shown below the front.
    assert [(row[0], *row[-2:]) for row in table.rows] == [
        ("1", "yes", "no"),
        ("2", "yes", "no"),
        ("4", "yes", "no"),
        ("3", "no", "yes"),
    ]
    assert dict(page.facts)["Trials"] == "4 of 5"
    # 0.9 · 0.1 + 0.6 · 0.3 + 0.2 · 0.1
    assert dict(page.facts)["Hypervolume"] == "0.290 beyond (0, 0)"


def test_a_stated_reference_and_a_budget_that_none_keeps_to_are_told() -> None:
    page = swept("sweep adapt", TRIALS, PLAN, [Limit("drift", 0.01)], (0.5, 0.0)).page
    assert page.headline.startswith("No trial keeps to drift ≤ 0.01, so none is recommended. Nearest is trial 1:")
    # 0.4 · 0.1 + 0.1 · 0.3
    assert dict(page.facts)["Hypervolume"] == "0.0700 beyond (0.500, 0)"
    assert any("which was stated" in note for note in page.notes)
    page = swept("sweep adapt", TRIALS, PLAN, []).page
    assert page.headline.startswith("3 of 4 trials are on the front")
    assert not any(note.startswith("To use it") for note in page.notes)


def test_the_nearest_trial_is_that_whose_worst_excess_is_least() -> None:
    far = made_up("1: lora_r 4", {"lora_r": 4}, *[{"retention": 0.5, "task_gain": 0.1, "drift": 0.01}] * 2)
    near = made_up("2: lora_r 8", {"lora_r": 8}, *[{"retention": 0.89, "task_gain": 0.1, "drift": 0.04}] * 2)
    page = swept("sweep adapt", [far, near], PLAN, [Limit("drift", 0.05), Limit("retention", 0.9)]).page
    # Of the limits only the broken one is told.
    assert "Nearest is trial 2: lora_r 8, with refusals kept 0.890" in page.headline
    assert "with drift" not in page.headline


def test_a_recommendation_whose_interval_leaves_the_budget_says_so() -> None:
    values = {"retention": 0.5, "task_gain": 0.3, "drift": 0.04}
    wide = made_up("1: lora_r 4", {"lora_r": 4}, values, spread=0.1)
    page = swept("sweep adapt", [wide], PLAN, [Limit("drift", 0.05)]).page
    assert "the interval of drift reaches beyond" in page.headline
    assert page.headline.endswith("One seed, so nothing is settled.")
    assert "settled" not in swept("sweep adapt", TRIALS, PLAN, [Limit("drift", 0.05)]).page.headline


def test_the_numbers_hold_settings_and_what_was_found(tmp_path: Path) -> None:
    swept("sweep adapt", TRIALS, PLAN, [Limit("drift", 0.05)]).write(tmp_path)
    rows = pq.read_table(tmp_path / RESULTS).to_pylist()
    assert len(rows) == 4 * 3
    found = {row["lora_r"]: (row["front"], row["recommended"]) for row in rows}
    assert found == {1: ("yes", "no"), 2: ("yes", "no"), 3: ("no", "yes"), 4: ("yes", "no")}


def test_without_a_whole_trial_the_reasons_are_given() -> None:
    with pytest.raises(ConfigError, match="out of memory"):
        swept("sweep adapt", [FAILED], PLAN, [])


def test_what_is_wanted_becomes_limits() -> None:
    assert Wanted(budget=0.05, keep=0.9).limits("adapt") == [Limit("drift", 0.05), Limit("retention", 0.9)]
    assert Wanted(budget=0.05).limits("align") == [Limit("reference_drift", 0.05)]
    assert Wanted().limits("adapt") == []
    assert Wanted(keep=0.9).limits("align") == [Limit("retention", 0.9)]
    with pytest.raises(ConfigError, match="nan is no bound"):
        Wanted(budget=math.nan).limits("adapt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measures": ("retention", "gain")}, "'gain' is no measure"),
        ({"measures": ("drift", "drift")}, "drift stands there twice"),
        ({"trials": 0}, "trials: 0 is too small"),
        ({"population": 1}, "population: 1 is too small"),
    ],
)
def test_an_impossible_plan_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SearchPlan(**{"space": PLAN.space, "measures": PLAN.measures, "sampler": "tpe", **changes})
