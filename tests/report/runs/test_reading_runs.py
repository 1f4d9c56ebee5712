"""What is found in the places that are given, and what is said of those that cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loralign.errors import StateError
from loralign.report.records import Metric
from loralign.report.runs.formats import render_markdown
from loralign.report.runs.reading import read_runs
from loralign.report.runs.records import (
    DRIFT_REDUCTION,
    HELD_BACK,
    KL,
    OVER_REFUSAL,
    OWN_PROBE,
    REFUSAL,
    TASK_LOSS,
    TOXICITY,
    Ground,
)
from loralign.report.runs.story import load_story
from tests.report.adaptation_runs import estimate, share, write_adaptation, write_json
from tests.report.guarded_runs import write_guarded
from tests.report.runs.many import FINGERPRINT, write_check, write_repair, write_tasks


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")


@pytest.mark.parametrize("name", ["align", "plain", "guarded", "repaired", "checks/plain", "tasks.json"])
def test_every_kind_is_read_by_itself(many: Path, name: str) -> None:
    assert load_story([many / name]).arms


def test_all_that_is_said_of_one_model_comes_together(many: Path) -> None:
    story = load_story([many])
    assert [arm.name for arm in story.arms] == ["SmolLM2-135M-Instruct", "align", "plain", "guarded", "repaired"]
    plain = story.arms[2]
    assert plain.reference == "align"
    assert {score.quantity.key for score in plain.scores} >= {
        "refusal", "over_refusal", "toxicity", "kl", "task_loss", "task:local_sst2 acc",
    }  # fmt: skip


def test_an_alignment_that_went_on_from_an_adapter_is_compared_to_that(many: Path, tmp_path: Path) -> None:
    shutil.copytree(many / "align", tmp_path / "align")
    edit(tmp_path / "align/run.json", {"config": {"run": {"adapter": "runs/taught/adapter"}}})
    assert [arm.name for arm in load_story([tmp_path / "align"]).arms] == ["taught", "align"]


def test_a_relative_name_is_the_same_model_as_an_absolute_one(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_check(tmp_path / "check", "plain/adapter", "plain", "align/adapter")
    monkeypatch.chdir(tmp_path)  # where plain/adapter does not exist
    story = load_story([many / "plain", tmp_path / "check"])
    assert [arm.name for arm in story.arms] == ["align", "plain"]


def test_the_same_place_twice_counts_once(many: Path) -> None:
    assert len(read_runs([many / "plain", many / "." / "plain"])) == len(read_runs([many / "plain"]))


def test_a_copy_inside_a_run_is_not_a_run_of_its_own(own: Path) -> None:
    before = len(read_runs([own]))
    write_repair(own / "plain" / "start", own / "x", "base")
    assert len(read_runs([own])) == before


def test_an_adaptation_gives_the_change_of_its_own_scores(many: Path) -> None:
    _, plain = read_runs([many / "plain"])
    scores = {score.quantity: score for score in plain.scores}
    loss = scores[TASK_LOSS]
    assert loss.change is not None
    assert loss.change.value == pytest.approx(-0.076)
    assert loss.change.low == pytest.approx(-0.086)
    assert loss.paired
    lost = scores[REFUSAL].change
    assert lost is not None
    assert lost.value == pytest.approx(0.55 - 0.99)
    assert not scores[REFUSAL].paired


def test_a_guarded_alignment_drifts_on_its_own_probe_as_an_adaptation_does(tmp_path: Path) -> None:
    start, aligned = read_runs([write_guarded(tmp_path / "aligned")])
    drifts = {score.ground: score for score in aligned.scores if score.quantity == KL}
    assert list(drifts) == [OWN_PROBE, HELD_BACK]
    assert drifts[OWN_PROBE].metric == drifts[OWN_PROBE].change == Metric(0.0431, 0.0371, 0.0491)
    assert [score.metric.value for score in start.scores if score.quantity == KL] == [0.0, 0.0]
    assert {score.quantity for score in aligned.scores} >= {REFUSAL, OVER_REFUSAL}
    assert aligned.role == "aligned, geo weighting, guarded by penalties"
    assert {curve.key for curve in aligned.curves} >= {"preference-loss", "drift", "refusals"}
    assert [one.key for one in aligned.layer_maps] == ["attenuation", "energy"]
    assert {one.category for one in start.categories} == {one.category for one in aligned.categories} != set()
    assert "KL drift (nats per token) on own probe" in render_markdown(load_story([tmp_path]))


def test_a_guarded_alignment_without_scored_drift_is_read(tmp_path: Path) -> None:
    directory = write_guarded(tmp_path / "aligned")
    write_json(directory, "scores.json", {"version": 1})
    start, aligned = read_runs([directory])
    assert start.scores == aligned.scores == ()


def test_a_repair_says_what_it_took_back(many: Path) -> None:
    base, before, after = read_runs([many / "repaired"])
    assert after.reference == base.subjects
    assert before.subjects[0][-2:] == ("plain", "adapter")
    scores = {score.quantity: score for score in after.scores}
    assert scores[KL].metric.value == pytest.approx(0.08)
    assert scores[DRIFT_REDUCTION].metric.value == pytest.approx(0.6)
    removed = after.layer_maps[0].values["model.layers.0.self_attn.k_proj"]
    assert removed["energy removed"] == pytest.approx(0.03)


def test_a_repair_that_does_not_name_its_adapter_is_read(own: Path) -> None:
    edit(own / "repaired" / "repair.json", {"adapter": None, "safety": None, "task": None})
    _, before, after = read_runs([own / "repaired"])
    assert before.name == "repaired, before the repair"
    assert {score.quantity for score in after.scores} == {KL, DRIFT_REDUCTION}


def test_drift_is_a_loss_in_the_file_and_a_change_here(many: Path) -> None:
    """Fewer refusals, but more over-refusals and more toxicity, are a positive drift in the file."""
    start, part = read_runs([many / "checks" / "plain"])
    assert [score.metric.value for score in start.scores] == pytest.approx([0.92, 0.12, 0.028])
    changes = {score.quantity: score.change for score in part.scores}
    assert changes[REFUSAL].value == pytest.approx(-0.32)  # type: ignore[union-attr]
    assert changes[REFUSAL].low == pytest.approx(-0.37)  # type: ignore[union-attr]
    assert changes[TOXICITY].value == pytest.approx(0.032)  # type: ignore[union-attr]
    assert changes[OVER_REFUSAL].high == pytest.approx(0.02)  # type: ignore[union-attr]


def test_a_check_knows_its_ground(many: Path) -> None:
    _, part = read_runs([many / "checks" / "plain"])
    detail = f"set {FINGERPRINT[:8]}, part test, 60 prompts, judge phrases"
    assert {score.ground for score in part.scores} == {Ground("DRIFTCHECK (generate mode)", detail)}


def test_checks_of_other_parts_or_sizes_do_not_compare(own: Path) -> None:
    edit(own / "checks" / "plain" / "run.json", {"prompts": 20, "baseline": None})
    story = load_story([own / "checks" / "align", own / "checks" / "plain"])
    grounds = {score.ground.detail for arm in story.arms for score in arm.scores}
    assert len(grounds) == 2
    assert story.regressions == ()


def test_a_baseline_may_be_a_check_or_kept_inside_of_one(own: Path) -> None:
    check, start = own / "checks" / "plain", own / "checks" / "align"
    edit(check / "run.json", {"baseline": str(start)})
    story = load_story([check])
    assert [arm.name for arm in story.arms] == ["align", "plain"]
    assert story.regressions == ()
    shutil.copytree(start, check / "baseline")
    (check / "baseline" / "scores.json").unlink()
    story = load_story([check])
    assert [arm.name for arm in story.arms] == ["align", "plain"]
    assert len(story.regressions) == 10
    assert story.notes == ()


def test_a_value_with_an_interval_is_kept_over_the_same_without(many: Path) -> None:
    for order in (("plain", "align"), ("align", "plain")):
        story = load_story([many / "checks" / name for name in order])
        refusal = story.arms[0].score("refusal")
        assert refusal is not None
        assert refusal.metric.low == pytest.approx(0.89)
        assert not any("unsafe" in note for note in story.notes)


def test_drift_reduction_is_read_with_its_note(own: Path) -> None:
    directory = own / "checks" / "guarded"
    edit(directory / "run.json", {"against": str(own / "plain" / "adapter")})
    edit(directory / "scores.json", {"drift_reduction": {"refusal": share(0.8) | {"note": ""}}})
    _, part = read_runs([directory])
    reduced = next(score for score in part.scores if score.quantity == DRIFT_REDUCTION)
    assert reduced.ground.name == "DRIFTCHECK (generate mode), against plain"
    edit(directory / "scores.json", {"drift_reduction": {"refusal": {"value": None, "note": "nothing to reduce"}}})
    _, part = read_runs([directory])
    assert "nothing to reduce" in part.notes[0]
    assert DRIFT_REDUCTION not in {score.quantity for score in part.scores}


def test_an_unfinished_check_is_told_of(own: Path) -> None:
    (own / "checks" / "plain" / "scores.json").unlink()
    *_, part = read_runs([own / "checks" / "plain"])
    assert part.scores == ()
    assert "unfinished" in part.notes[0]


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", None])
def test_damaged_answers_leave_a_note(own: Path, content: bytes | None) -> None:
    path = own / "checks" / "plain" / "responses.parquet"
    if content is None:
        pq.write_table(pa.table({"other": [1]}), path)
    else:
        path.write_bytes(content)
    *_, part = read_runs([own / "checks" / "plain"])
    assert part.answers == ()
    assert part.scores
    assert "responses.parquet" in part.notes[0]


def test_task_scores_of_arms_have_paired_differences(tmp_path: Path) -> None:
    def score(value: float) -> dict[str, Any]:
        about = {"task": "gsm8k", "metric": "exact_match", "filter": "strict", "value": value, "stderr": 0.02, "n": 100}
        return {"scores": [about | {"higher_is_better": None}]}

    row = {"task": "gsm8k", "metric": "exact_match", "filter": "strict"}
    content = {
        "format": "loralign.tasks",
        "version": 1,
        "model": "SmolLM2",
        "adapter": "runs/plain/adapter",
        "arms": {"base": score(0.5), "adapter": score(0.6), "merged": score(0.61)},
        "comparison": [row | {"differences": {"adapter": {"value": 0.1, "stderr": 0.01}}}],
    }
    write_json(tmp_path, "tasks.json", content)
    story = load_story([tmp_path / "tasks.json"])
    assert [arm.name for arm in story.arms] == ["SmolLM2", "plain", "adapter (merged)"]
    base, adapter, merged = (arm.scores[0] for arm in story.arms)
    assert adapter.quantity.title == "gsm8k exact_match, strict"
    assert adapter.change is not None
    assert adapter.change.low == pytest.approx(0.1 - 1.959964 * 0.01)
    assert adapter.paired
    assert merged.change is not None
    assert not merged.paired
    assert base.change is None
    assert base.metric.high == pytest.approx(0.5 + 1.959964 * 0.02)


def damage_json(name: str) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        (root / name).write_text('{"version": 1, "kind"', encoding="utf-8")
        return root / name

    return damage


def change_json(name: str, change: dict[str, Any]) -> Callable[[Path], Path]:
    def damage(root: Path) -> Path:
        edit(root / name, change)
        return root / name

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_json("plain/run.json"), "not valid JSON"),
        (damage_json("repaired/repair.json"), "not valid JSON"),
        (damage_json("repaired/adapter_config.json"), "not valid JSON"),
        (damage_json("checks/plain/run.json"), "not valid JSON"),
        (damage_json("checks/plain/scores.json"), "not valid JSON"),
        (damage_json("tasks.json"), "not valid JSON"),
        (change_json("plain/run.json", {"kind": "diagnose"}), "a run of kind 'diagnose' is unknown"),
        (change_json("plain/run.json", {"version": 2}), "version 2 is unknown"),
        (change_json("repaired/repair.json", {"version": 2}), "version 2 is unknown"),
        (change_json("repaired/repair.json", {"kind": "adapt"}), "not the record of a repair"),
        (change_json("checks/plain/scores.json", {"format": "loralign.scores"}), "'loralign.scores' is not"),
        (change_json("tasks.json", {"format": "else"}), "'else' is not 'loralign.tasks'"),
        (change_json("tasks.json", {"version": 9}), "version 9 is unknown"),
        (change_json("tasks.json", {"results": 3}), "has no scores"),
        (change_json("tasks.json", {"results": [{"model": "m", "task": "t", "metric": "a"}]}), "has no value"),
        (change_json("tasks.json", {"results": [{"model": "m", "value": 1}]}), "has no task"),
        (change_json("tasks.json", {"results": [{"task": "t"}]}), "has no model"),
        (change_json("tasks.json", {"results": [{"model": "m", "task": "t", "metric": "a", "value": 1e999}]}), "value"),
    ],
)
def test_what_is_damaged_or_unknown_is_named_with_its_place(
    own: Path, damage: Callable[[Path], Path], told: str
) -> None:
    path = damage(own)
    with pytest.raises(StateError) as caught:
        read_runs([own])
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "empty", "\x00", "x" * 5000])
def test_a_place_without_a_run_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StateError, match=r"holds nothing|does not exist"):
        read_runs([tmp_path / name])


def test_a_file_that_is_no_task_scores_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    with pytest.raises(StateError, match="not a JSON object"):
        read_runs([tmp_path / "x.json"])


def test_a_model_measured_twice_is_told_of(many: Path, tmp_path: Path) -> None:
    write_check(tmp_path / "again", str(many / "plain" / "adapter"), "guarded", str(many / "align" / "adapter"))
    story = load_story([many / "checks" / "plain", tmp_path / "again"])
    assert [arm.name for arm in story.arms] == ["align", "plain"]
    score = story.arms[1].scores[0]
    assert score.metric.value == pytest.approx(0.6)
    assert "measured more than once on unsafe prompts refused" in story.notes[-1]


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_check(tmp_path / place / "check", f"/{place}/run/adapter", "plain", "base")
    names = [arm.name for arm in load_story([tmp_path]).arms]
    assert names == ["base", "run", "run (2)"]


def test_scores_of_one_task_over_other_samples_do_not_compare(tmp_path: Path) -> None:
    write_tasks(tmp_path, {"align": "a/adapter", "plain": "b/adapter"}, "a/adapter")
    content = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    content["results"][0]["n"] = 10
    write_json(tmp_path, "tasks.json", content)
    plain = next(arm for arm in load_story([tmp_path]).arms if arm.name == "b")
    changes = {score.quantity.key: score.change for score in plain.scores}
    assert changes["task:local_sst2 acc"] is None
    assert changes["task:local_mmlu acc"] is not None


@pytest.mark.parametrize("change", [{"fewshot": 5}, {"version": "2.0"}])
def test_scores_of_one_task_asked_in_another_way_do_not_compare(tmp_path: Path, change: dict[str, Any]) -> None:
    write_tasks(tmp_path, {"align": "a/adapter", "plain": "b/adapter"}, "a/adapter")
    content = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    content["results"][0] |= change
    write_json(tmp_path, "tasks.json", content)
    plain = next(arm for arm in load_story([tmp_path]).arms if arm.name == "b")
    changes = {score.quantity.key: score.change for score in plain.scores}
    assert changes["task:local_sst2 acc"] is None
    assert changes["task:local_mmlu acc"] is not None


@pytest.mark.parametrize("change", [{"judge": "classifier:other"}, {"max_new_tokens": 500}])
def test_checks_that_were_judged_or_answered_otherwise_do_not_compare(own: Path, change: dict[str, Any]) -> None:
    edit(own / "checks" / "plain" / "run.json", {"baseline": None, **change})
    story = load_story([own / "checks" / "align", own / "checks" / "plain"])
    assert len({score.ground.detail for arm in story.arms for score in arm.scores}) == 2
    assert story.regressions == ()


def test_a_run_that_is_called_as_its_model_is_not_its_model(tmp_path: Path) -> None:
    run = write_adaptation(tmp_path / "tiny-model")
    edit(run / "run.json", {"model": "tiny-model"})
    for order in ([run], [run, run]):
        story = load_story(order)
        assert len(story.arms) == 2
        start, tuned = story.arms
        assert tuned.reference == start.name
        drift = {arm.name: next(one for one in arm.scores if one.quantity == KL) for arm in (start, tuned)}
        assert drift[start.name].metric.value == 0
        assert drift[tuned.name].metric.value == pytest.approx(0.0431)


def test_values_of_another_type_count_as_absent(own: Path) -> None:
    edit(own / "checks" / "plain" / "scores.json", {"refusal": "high", "categories": {"a": 1}, "toxicity": estimate(2)})
    edit(own / "checks" / "plain" / "run.json", {"baseline": 3, "environment": [], "command": "x"})
    *_, part = read_runs([own / "checks" / "plain"])
    assert [score.quantity for score in part.scores] == [OVER_REFUSAL, TOXICITY]
    assert part.categories == ()
