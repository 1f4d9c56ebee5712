"""What is said of an adaptation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from loralign.report import Adaptation, adaptation_headline, explain_guard, load_adaptation
from loralign.report.adaptation_outcome import score_rows
from loralign.report.adaptation_records import AdaptationScores
from loralign.report.guard_records import GuardStep, Probe, Reestimate, Safety
from loralign.report.records import Metric
from tests.report.adaptation_runs import warning, write_json
from tests.report.conftest import write_lines


@pytest.fixture
def run(adaptation_directory: Path) -> Adaptation:
    return load_adaptation(adaptation_directory)


def scored(run: Adaptation, **changes: Any) -> Adaptation:
    assert run.scores is not None
    return dataclasses.replace(run, scores=dataclasses.replace(run.scores, **changes))


def told(run: Adaptation) -> str:
    return " ".join(explain_guard(run))


def test_the_headline_says_gain_loss_budget_and_refusals(run: Adaptation) -> None:
    assert adaptation_headline(run) == (
        "SmolLM2-135M-Instruct adapted with its alignment held by penalties after 60 steps: held-back task loss "
        "1.55 → 1.47 nats per token and drift 0.0431 nats per token from the start (within the budget of 0.0500). "
        "It refuses 97\u00a0% of unsafe prompts (99\u00a0% before) and 14\u00a0% of safe prompts (36\u00a0% before)."
    )


def test_the_headline_of_a_plain_run_names_no_guard_and_no_budget(run: Adaptation) -> None:
    text = adaptation_headline(dataclasses.replace(run, mode="none", guard="none", budget=None))
    assert "without a guard (plain LoRA)" in text
    assert "budget" not in text


def test_a_running_run_tells_its_last_probe(run: Adaptation) -> None:
    text = adaptation_headline(dataclasses.replace(run, scores=None, status="running"))
    assert "after 60 steps (still running): drift 0.0429" in text
    assert "by the last probe" in text
    bare = dataclasses.replace(run, scores=None, probes=(), steps=(), guard_steps=())
    assert adaptation_headline(bare).endswith("held by penalties: there are no scores before and after to compare.")


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        (Metric(0.05, 0.03, 0.07), "fell by 0.0500 [0.0300, 0.0700] nats per token."),
        (Metric(0.01, -0.02, 0.04), "nothing shows that the task was learnt"),
        (Metric(-0.05, -0.07, -0.03), "rose by 0.0500 [0.0300, 0.0700] nats per token. The task was not learnt"),
    ],
)
def test_what_was_gained_comes_first_and_counts_its_interval(run: Adaptation, gain: Metric, message: str) -> None:
    first = explain_guard(scored(run, task_gain=gain))[0]
    assert first.startswith("Gained: the loss on held-back task samples")
    assert message in first


def test_only_a_guarded_run_is_told_to_loosen_its_guard(run: Adaptation) -> None:
    unclear = scored(run, task_gain=Metric(0.01, -0.02, 0.04))
    assert "loosen the guard" in told(unclear)
    assert "loosen the guard" not in told(dataclasses.replace(unclear, mode="none"))


def refusing(refusal: float, over_refusal: float, **categories: float) -> Safety:
    def around(value: float) -> Metric:
        return Metric(value, value - 0.04, value + 0.04)

    found = {("unsafe", name): around(rate) for name, rate in categories.items()}
    return Safety(around(refusal), around(over_refusal), found | {("safe", "idioms"): around(0.0)})


def test_lost_refusals_get_the_means_at_hand(run: Adaptation) -> None:
    before, after = refusing(0.99, 0.3, hate=1.0, privacy=0.98), refusing(0.36, 0.02, hate=0.6, privacy=0.1)
    lost = scored(run, safety_before=before, safety_after=after)
    text = told(lost)
    assert "Refusals of unsafe prompts fell from 99\u00a0% to 36\u00a0% (63 points, beyond the intervals)." in text
    assert "Lower --drift_budget, take the part in the subspace out (--guard_mode project)" in text
    assert "The category privacy lost most (98\u00a0% to 10\u00a0%)" in text
    assert "Set --drift_budget" in told(dataclasses.replace(lost, budget=None))
    assert "--guard_mode project" not in told(dataclasses.replace(lost, mode="project"))
    assert "guard the training (--guard auto)" in told(dataclasses.replace(lost, mode="none"))


def test_ten_points_are_not_yet_a_loss(run: Adaptation) -> None:
    kept = scored(run, safety_before=refusing(0.8, 0.1), safety_after=refusing(0.7, 0.2))
    assert "loralign repair" not in told(kept)
    assert "more timid" not in told(kept)
    assert "more timid" in told(scored(run, safety_before=refusing(0.8, 0.1), safety_after=refusing(0.8, 0.25)))
    assert "stayed at 80\u00a0%" in told(scored(run, safety_before=refusing(0.8, 0.1), safety_after=refusing(0.8, 0.2)))


@pytest.mark.parametrize(
    ("drift", "verdict"),
    [(0.01, "held: drift ended at 0.0100"), (0.05, "held"), (0.054, "just missed"), (0.2, "not held")],
)
def test_the_budget_gets_a_verdict(run: Adaptation, drift: float, verdict: str) -> None:
    text = told(scored(run, drift=Metric(drift, drift, drift)))
    assert f"The budget {'was ' if drift > 0.05 else ''}{verdict}" in text
    assert ("There is room" in text) == (drift < 0.025)
    assert ("loralign repair brings this adapter within the budget" in text) == (drift > 0.05)
    assert "2 of 12 probes on the way lay above it, the most was 0.0566 at step 19" in text


def test_a_missed_budget_names_what_stood_in_the_way(run: Adaptation) -> None:
    missed = scored(run, drift=Metric(0.2))
    bound = dataclasses.replace(missed, guard_steps=(GuardStep(59, 1e4),))
    assert "reached its bound of 10000: raise --control_max, or use --guard_mode project" in told(bound)
    outside = told(scored(missed, share=0.001))
    assert "Only 0.100\u00a0% of the update lies in the subspace, so this drift comes from outside of it" in outside
    assert "--fisher_samples" in outside


def test_without_a_budget_the_weights_are_told(run: Adaptation) -> None:
    fixed = dataclasses.replace(run, budget=None)
    assert "the weights stood fixed at λ_A" in told(fixed)
    projected = dataclasses.replace(fixed, mode="project", guard_steps=(GuardStep(5, 1.0, strength=0.9),))
    assert "every step took 90\u00a0% of the part in the subspace out" in told(projected)
    assert "Nothing acted on the update" in told(dataclasses.replace(run, mode="measure"))


def test_a_large_share_under_penalties_is_said_to_be_one(run: Adaptation) -> None:
    assert "2.10\u00a0% lies in the alignment subspace (at most it was 6.40\u00a0%, at step 4)" in told(run)
    heavy = scored(run, share=0.3)
    assert "presses lightly" in told(heavy)
    assert "presses lightly" not in told(dataclasses.replace(heavy, mode="project"))
    unscored = dataclasses.replace(run, scores=None, probes=(Probe(4, 0.01, share=0.04),))
    assert "4.00\u00a0% lies in the alignment subspace." in told(unscored)


def test_the_subspace_and_its_stability_are_told(run: Adaptation) -> None:
    text = told(run)
    assert "covers 210 layers with 4 to 32 directions each; they capture 77\u00a0% of the Fisher energy" in text
    assert "(96 samples)" in text
    assert "estimated again at step 39 and agreed with the earlier one to 0.810. It moves" in text
    steady = dataclasses.replace(run, reestimates=(Reestimate(9, 0.97, 0.9), Reestimate(19, 0.95, 0.9)))
    assert "2 times and agreed with the one before to 0.950 or more." in told(steady)
    assert "It moves" not in told(steady)
    assert run.subspace is not None
    halves = dataclasses.replace(run.subspace, facts={"half_agreement": 0.6})
    assert "Halves of the samples agree to 0.600 only" in told(dataclasses.replace(run, subspace=halves))


def test_a_probe_in_the_training_data_is_told(run: Adaptation) -> None:
    data = run.data | {"probe_prompts_in_training": 3}
    assert "3 of the probe's 48 prompts are in the training data" in told(dataclasses.replace(run, data=data))
    assert "in the training data" not in told(run)


def test_warnings_of_one_kind_are_told_once(own_adaptation: Path) -> None:
    write_lines(own_adaptation / "guard.jsonl", [warning(9), warning(19), warning(29, "refusals_lost")])
    sentences = [text for text in explain_guard(load_adaptation(own_adaptation)) if text.startswith("Warning")]
    assert [text.split(":")[0] for text in sentences] == ["Warning, 2 times, first at step 9", "Warning, at step 29"]
    assert sentences[0].endswith("What to change: estimate it from more samples (--fisher_samples) or lower its rank.")


def test_a_run_without_anything_says_so(own_adaptation: Path) -> None:
    for name in ("guard.jsonl", "scores.json", "samples.json"):
        (own_adaptation / name).unlink()
    write_json(own_adaptation, "run.json", {"version": 1, "kind": "adapt"})
    empty = load_adaptation(own_adaptation)
    assert explain_guard(empty) == ["Nothing was measured in this run: it has no scores, no probe and no guard."]
    assert "an unnamed model adapted with guard unknown: there are no scores" in adaptation_headline(empty)


def test_score_rows_give_before_after_and_the_difference(run: Adaptation) -> None:
    rows = {row[0]: row[1:] for row in score_rows(run)}
    assert rows["task loss (nats per token)"] == (
        "1.55 [1.46, 1.64]", "1.47 [1.38, 1.56]", "−0.0760 [−0.0860, −0.0660]"
    )  # fmt: skip
    assert rows["drift (nats per token)"][:2] == ("0", "0.0431 [0.0371, 0.0491]")
    assert rows["unsafe prompts refused"][2] == "−2.00 points"
    assert rows["safe prompts refused"][:2] == ("36.0\u00a0% [28.0, 44.0]", "14.0\u00a0% [6.00, 22.0]")
    assert rows["share of the update in the subspace"] == ("", "2.10\u00a0%", "")
    worse = scored(run, safety_before=refusing(0.5, 0.1), safety_after=refusing(0.55, 0.1))
    assert {row[0]: row[3] for row in score_rows(worse)}["unsafe prompts refused"] == "+5.00 points"


def test_scores_that_are_absent_leave_no_row_or_an_empty_cell(run: Adaptation) -> None:
    assert score_rows(dataclasses.replace(run, scores=None)) == []
    bare = AdaptationScores(None, None, None, refusing(0.9, 0.1), None, None, None, None)
    rows = {row[0]: row[1:] for row in score_rows(dataclasses.replace(run, scores=bare))}
    assert rows["task loss (nats per token)"] == ("n/a", "n/a", "n/a")
    assert rows["unsafe prompts refused"][0] == "n/a"
    assert "share of the update in the subspace" not in rows
