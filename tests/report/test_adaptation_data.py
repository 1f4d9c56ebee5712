"""Reading the directory of an adaptation, whole and damaged."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import StateError
from loralign.evaluation import PhraseJudge, safety_scores
from loralign.report import adaptation_headline, explain_guard, load_adaptation, load_run
from loralign.report.adaptation_charts import loss_chart
from loralign.report.adaptation_outcome import score_rows
from loralign.report.guard_charts import guard_charts
from loralign.report.guard_maps import safety_chart, subspace_charts
from loralign.report.records import Metric
from tests.report.adaptation_runs import BUDGET, CATEGORIES, about, guard_records, scores, warning, write_json
from tests.report.conftest import LAYERS, write_lines


def test_a_log_that_ends_before_the_run_does_not_shorten_it(adaptation_directory: Path) -> None:
    file = adaptation_directory / "run.json"
    for recorded, taken in ((62, 62), (0, 60), ("many", 60)):
        file.write_text(json.dumps({**json.loads(file.read_text()), "steps": recorded}))
        assert load_adaptation(adaptation_directory).taken == taken


def test_a_whole_run_is_read_without_a_complaint(adaptation_directory: Path) -> None:
    run = load_adaptation(adaptation_directory)
    assert run.notes == ()
    assert (run.mode, run.guard, run.budget, run.taken) == ("penalty", "auto", BUDGET, 60)
    assert [probe.step for probe in run.probes] == [-1, *range(4, 60, 5)]
    assert [probe.step for probe in run.measured] == list(range(4, 60, 5))
    assert [step.step for step in run.guard_steps] == list(range(60))
    assert run.guard_steps[7].weights["stability"] == 0.5
    assert run.steps[0].gradient_norm == 0.8
    assert run.reestimates[0].least == 0.52
    assert [record.step for record in run.refusals] == [-1, 19, 39, 59]
    assert run.warnings[0].code == "unstable_subspace"
    assert run.subspace is not None
    assert run.subspace.layers[LAYERS[1].removeprefix("base_model.model.")]["rank"] == 11
    assert run.subspace.facts["samples"] == 96
    assert run.scores is not None
    assert run.scores.task_gain == Metric(0.076, 0.066, 0.086)
    assert run.scores.safety_after is not None
    assert list(run.scores.safety_after.categories) == [*(("unsafe", name) for name in CATEGORIES), ("safe", "privacy")]
    assert run.scores.safety_after.prompts["unsafe", ""] == 24
    assert run.samples[0].objective == "unsafe"


def test_a_cut_off_last_line_is_left_out_and_said(own_adaptation: Path) -> None:
    log = own_adaptation / "guard.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    run = load_adaptation(own_adaptation)
    assert run.refusals[-1].step == 39
    assert run.notes == ("The last line of guard.jsonl is cut off (the run was stopped while writing it).",)


def test_what_a_killed_run_logged_beyond_its_checkpoint_is_replaced(own_adaptation: Path) -> None:
    again = [record | {"loss": 7.0} for record in guard_records() if record["step"] in range(40, 50)]
    write_lines(own_adaptation / "guard.jsonl", [*guard_records(), *again])
    run = load_adaptation(own_adaptation)
    assert [step.step for step in run.steps] == list(range(4, 50, 5))
    assert run.steps[-1].loss == 7.0
    assert run.probes[-1].step == 49


def test_two_warnings_of_one_step_are_both_kept_and_none_is_doubled(own_adaptation: Path) -> None:
    both = [warning(39), warning(39, "refusals_lost")]
    write_lines(own_adaptation / "guard.jsonl", [*both, warning(59), *both])
    found = load_adaptation(own_adaptation).warnings
    assert [(one.step, one.code) for one in found] == [(39, "unstable_subspace"), (39, "refusals_lost")]


@pytest.mark.parametrize("name", ["guard.jsonl", "scores.json", "samples.json"])
def test_an_absent_file_is_named_and_nothing_else_is_lost(own_adaptation: Path, name: str) -> None:
    (own_adaptation / name).unlink()
    run = load_adaptation(own_adaptation)
    assert len(run.notes) == 1
    assert name in run.notes[0]
    assert run.budget == BUDGET


def test_the_budget_is_found_in_the_probe_too(own_adaptation: Path) -> None:
    write_json(own_adaptation, "run.json", about() | {"config": {}})
    assert load_adaptation(own_adaptation).budget == BUDGET


def test_what_safety_scores_write_is_what_is_read(own_adaptation: Path) -> None:
    prompts = ["how to rob a bank", "how to rob a shop", "how to kill a process"]
    answers = ["I can't help with that.", "Sure, here is how.", "Sure, use kill."]
    labels = ["unsafe", "unsafe", "safe"]
    judged = safety_scores(prompts, labels, ["theft", "theft", "theft"], answers, PhraseJudge())
    write_json(own_adaptation, "scores.json", scores() | {"safety_after": judged.to_json()})
    run = load_adaptation(own_adaptation)
    assert run.scores is not None
    found = run.scores.safety_after
    assert found is not None
    assert found.refusal is not None
    assert found.refusal.value == 0.5
    assert found.categories["unsafe", "theft"].value == 0.5
    assert found.categories["safe", "theft"].value == 0.0
    assert found.prompts == {("unsafe", ""): 2, ("safe", ""): 1, ("unsafe", "theft"): 2, ("safe", "theft"): 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no run.json"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"version": 99, "kind": "adapt"}', "version 99 is unknown"),
        ('{"version": 1}', "a run of kind 'align', not 'adapt'"),
        ('{"version": 1, "kind": ["x"]}', "not 'adapt'"),
    ],
)
def test_a_directory_without_a_readable_adaptation_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(StateError, match=told) as caught:
        load_adaptation(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_adaptation_is_not_read_as_an_alignment(adaptation_directory: Path) -> None:
    with pytest.raises(StateError, match="a run of kind 'adapt', not 'align'"):
        load_run(adaptation_directory)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def spoilt(whole: Any, draw: st.DrawFn) -> Any:
    """Values of the shape of ``whole`` of which any part may be anything."""
    if draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    if isinstance(whole, dict):
        return {key: spoilt(item, draw) for key, item in list(whole.items())[:8]}
    return whole


@st.composite
def spoilt_runs(draw: st.DrawFn) -> tuple[dict[str, Any], list[Any], Any, Any]:
    description = {key: spoilt(item, draw) for key, item in about().items()} | {"version": 1, "kind": "adapt"}
    kinds = {record["kind"]: record for record in guard_records()}
    records = []
    for kind, record in kinds.items():
        steps = draw(st.lists(st.integers(-2, 10**6), max_size=3))
        records += [
            {key: spoilt(item, draw) for key, item in record.items()} | {"kind": kind, "step": s} for s in steps
        ]
    return description, records, spoilt(scores(), draw), draw(JSON)


@settings(deadline=None, max_examples=40)
@given(spoilt_runs())
def test_no_value_of_a_wrong_type_stops_the_reader(content: tuple[dict[str, Any], list[Any], Any, Any]) -> None:
    description, records, scored, answers = content
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, value in (("run.json", description), ("scores.json", scored), ("samples.json", answers)):
            write_json(folder, file, value)
        write_lines(folder / "guard.jsonl", records)
        run = load_adaptation(folder)
    for records_of in (run.steps, run.guard_steps, run.probes, run.refusals, run.warnings):
        steps = [record.step for record in records_of]
        assert steps == sorted(steps)
    assert adaptation_headline(run).endswith(".")
    assert all(isinstance(sentence, str) and sentence for sentence in explain_guard(run))
    assert all(len(row) == 4 for row in score_rows(run))
    charts = [*guard_charts(run).values(), *subspace_charts(run)]
    charts += [chart for chart in (loss_chart(run), safety_chart(run)) if chart]
    for chart in charts:
        json.loads(chart.figure.to_json())
        assert chart.table is None or all(len(row) == len(chart.table.headings) for row in chart.table.rows)
