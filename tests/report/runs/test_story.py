"""What the story says: its headline, its differences, its front and its worst regressions."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralign.report.records import Metric, Sample
from loralign.report.runs.combining import Arm
from loralign.report.runs.differences import beyond_zero, difference
from loralign.report.runs.headline import headline_lines
from loralign.report.runs.pareto import front, pareto_charts
from loralign.report.runs.records import (
    DRIFT_REDUCTION,
    KL,
    OWN_PROBE,
    REFUSAL,
    TASK_LOSS,
    Answer,
    Answers,
    Ground,
    Part,
    Quantity,
    Score,
)
from loralign.report.runs.regressions import worst_regressions
from loralign.report.runs.story import Story, load_story, make_story
from loralign.report.runs.subjects import same, subject, subject_name
from loralign.report.runs.tables import arms_table, changes_table
from tests.report.runs.many import write_check

SST2 = Quantity("task:sst2 acc", "sst2 acc", "score", True, True)
CHECK = Ground("DRIFTCHECK (generate mode)")


def tuned(*scores: Score, name: str = "plain") -> Arm:
    return Arm(name, "", "start", scores)


def scored(quantity: Quantity, value: float, low: float, high: float, ground: Ground = CHECK) -> Score:
    return Score(quantity, ground, Metric(0.5, 0.4, 0.6), Metric(value, low, high))


def headline_of(arms: list[Arm]) -> str:
    return " ".join(headline_lines(arms))


def test_the_headline_says_gain_and_loss_with_intervals() -> None:
    arm = tuned(scored(SST2, 0.22, 0.18, 0.26, Ground("")), scored(REFUSAL, -0.32, -0.37, -0.27))
    assert headline_of([arm]) == (
        "Against start, plain gained 0.220 [0.180, 0.260] of sst2 acc and lost 32.0 points [27.0, 37.0] "
        "of refusals of unsafe prompts."
    )


def test_the_headline_says_where_an_interval_holds_zero() -> None:
    arm = tuned(scored(SST2, 0.02, -0.01, 0.05, Ground("")), scored(REFUSAL, -0.04, -0.09, 0.01))
    assert headline_of([arm]).count("(not settled: the interval holds zero)") == 2
    sure = tuned(scored(SST2, 0.02, 0.01, 0.05, Ground("")), scored(REFUSAL, -0.04, -0.09, -0.01))
    assert "settled" not in headline_of([sure])


def test_a_lower_loss_is_a_gain_and_a_higher_one_a_loss() -> None:
    assert "gained a task loss (nats per token) lower by 0.0760 [0.0660, 0.0860]" in headline_of(
        [tuned(scored(TASK_LOSS, -0.076, -0.086, -0.066))]
    )
    assert "lost a task loss (nats per token) higher by 0.0760" in headline_of(
        [tuned(scored(TASK_LOSS, 0.076, 0.066, 0.086))]
    )


def test_drift_is_told_where_refusals_are_not_known() -> None:
    drift = Score(KL, OWN_PROBE, Metric(0.2, 0.1, 0.3), Metric(0.2, 0.1, 0.3))
    assert headline_of([tuned(drift)]) == "Against start, plain drifted by 0.200 [0.100, 0.300] nats per token."


def test_reduction_names_the_run_that_it_is_against() -> None:
    reduced = Score(DRIFT_REDUCTION, Ground("DRIFTCHECK (generate mode), against plain"), Metric(0.6, 0.5, 0.7))
    told = headline_of([tuned(scored(REFUSAL, -0.1, -0.2, -0.05), reduced, name="guarded")])
    assert told.endswith("(60.0 % [50.0, 70.0] less drift than plain).".replace(" %", "\u00a0%"))


def test_without_a_start_nothing_is_called_gained() -> None:
    told = headline_of([Arm("m", "", None, (Score(SST2, Ground(""), Metric(0.8)),))])
    assert "m: sst2 acc 0.800." in told
    assert "unknown" in told
    nothing = Arm("m", "", None, (Score(KL, OWN_PROBE, Metric(0.0)),))
    assert "Nothing was scored" in headline_of([nothing])
    never = Arm("m", "", None, (Score(REFUSAL, CHECK, Metric(0.0)),))
    assert "unsafe prompts refused 0" in headline_of([never])


def test_the_story_of_many_is_told_against_their_start(story: Story) -> None:
    assert story.headline.startswith("Against align, plain gained 0.220 [0.187, 0.253] of local_sst2 acc and lost 32.0")
    assert "guarded gained" in story.headline
    assert story.headline.endswith("1 more model is in the tables.")


def test_every_model_has_a_line_of_the_headline(story: Story) -> None:
    assert story.headline == " ".join(story.told)
    *models, rest = story.told
    assert rest == "1 more model is in the tables."
    assert all(line.count(" gained ") == 1 for line in models)
    assert [line[-1] for line in models] == [";"] * (len(models) - 1) + ["."]


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (Metric(0.6, 0.5, 0.7), Metric(0.4, 0.4, 0.4), (0.2, 0.1, 0.3)),
        (Metric(0.6, 0.6, 0.6), Metric(0.4, 0.3, 0.6), (0.2, 0.0, 0.3)),
        (Metric(0.6, 0.57, 0.63), Metric(0.4, 0.36, 0.44), (0.2, 0.15, 0.25)),
        (Metric(0.6), Metric(0.4, 0.3, 0.6), (0.2, None, None)),
    ],
)
def test_a_difference_joins_both_intervals(
    after: Metric, before: Metric, expected: tuple[float | None, float | None, float | None]
) -> None:
    found = difference(after, before)
    assert found is not None
    assert dataclasses.astuple(found) == pytest.approx(expected)


def test_a_difference_needs_both_values() -> None:
    assert difference(None, Metric(1.0)) is None
    assert difference(Metric(1.0), Metric(None)) is None


@pytest.mark.parametrize(
    ("metric", "expected"),
    [(Metric(1.0, 0.5, 2.0), True), (Metric(-1.0, -2.0, -0.5), True), (Metric(1.0, -1.0, 2.0), False),
     (Metric(1.0, 0.0, 2.0), False), (Metric(1.0), None)],
)  # fmt: skip
def test_an_interval_that_touches_zero_holds_it(metric: Metric, expected: bool | None) -> None:
    assert beyond_zero(metric) is expected


points = st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), max_size=8)


@given(points, st.booleans())
def test_the_front_is_what_no_other_point_beats(places: list[tuple[float, float]], higher: bool) -> None:
    sign = 1 if higher else -1

    def beaten(one: tuple[float, float], by: tuple[float, float]) -> bool:
        return by != one and by[0] <= one[0] and sign * by[1] >= sign * one[1]

    expected = [i for i, one in enumerate(places) if not any(beaten(one, other) for other in places)]
    found = front(places, higher=higher)
    assert sorted(found) == expected
    assert [places[i][0] for i in found] == sorted(places[i][0] for i in found)


def test_the_scatter_draws_the_front_and_leaves_the_beaten_one_off(story: Story) -> None:
    chart = pareto_charts(story.arms)[0]
    edge = chart.figure.data[0]
    assert edge.name == "Pareto front"
    assert list(edge.x) == pytest.approx([0, 4, 32])
    assert list(edge.y) == pytest.approx([0.61, 0.81, 0.83])
    assert chart.table is not None
    assert [row[-1] for row in chart.table.rows] == ["yes", "yes", "yes", "no"]


def test_points_of_one_scatter_have_one_start(story: Story) -> None:
    chart = next(one for one in pareto_charts(story.arms) if one.title.startswith("preference accuracy"))
    assert [trace.name for trace in chart.figure.data[1:]] == ["SmolLM2-135M-Instruct", "align"]
    assert [trace.x[0] for trace in chart.figure.data[1:]] == [0.0, 0.021]


def test_a_loss_is_drawn_upside_down(story: Story) -> None:
    chart = next(one for one in pareto_charts(story.arms) if one.title.startswith("task loss"))
    assert chart.figure.layout.yaxis.autorange == "reversed"
    assert chart.figure.data[0].meta == {"front": True, "higher": False}


def test_the_table_has_every_arm_and_only_scores_of_one_ground_in_a_row(story: Story) -> None:
    table = arms_table(story.arms)
    assert table.headings == ("score", "SmolLM2-135M-Instruct", "align", "plain", "guarded", "repaired")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["unsafe prompts refused on DRIFTCHECK (generate mode)"][2] == "60.0\u00a0% [57.0, 63.0]"
    assert rows["unsafe prompts refused on own probe"][2] == "55.0\u00a0% [47.0, 63.0]"
    assert rows["local_sst2 acc"][2] == "0.830 [0.806, 0.854]"
    changes = {row[0]: row[1:] for row in changes_table(story.arms).rows}
    assert changes["against"] == ("SmolLM2-135M-Instruct", "align", "align", "align")
    assert changes["toxicity on DRIFTCHECK (generate mode)"][1] == "3.20 points [1.20, 5.20]"


def answers(**rows: tuple[str, float]) -> Answers:
    return Answers(CHECK, {key: Answer("p", key, label, "hate", refused) for key, (label, refused) in rows.items()})


def pair(before: Answers, after: Answers, name: str = "plain") -> list[Arm]:
    return [Arm("start", "", None, (), answers=(before,)), Arm(name, "", "start", (), answers=(after,))]


def test_a_regression_was_refused_and_no_longer_is() -> None:
    before = answers(a=("unsafe", 0.9), b=("unsafe", 0.9), c=("unsafe", 0.4), d=("safe", 0.9), e=("unsafe", 0.5))
    after = answers(a=("unsafe", 0.1), b=("unsafe", 0.6), c=("unsafe", 0.0), d=("safe", 0.0), e=("unsafe", 0.49))
    found = worst_regressions(pair(before, after))
    assert [(one.before, one.arm) for one in found] == [("a", "plain"), ("e", "plain")]
    assert found[0].loss == pytest.approx(0.8)


def test_only_ten_are_kept_and_the_arms_take_turns_among_equals() -> None:
    many = {f"k{number}": ("unsafe", 1.0) for number in range(30)}
    none = dict.fromkeys(many, ("unsafe", 0.0))
    arms = [*pair(answers(**many), answers(**none)), pair(answers(**many), answers(**none), "other")[1]]
    found = worst_regressions(arms)
    assert [one.arm for one in found] == ["plain", "other"] * 5
    arms[1] = Arm("plain", "", "start", (), answers=(answers(**dict.fromkeys(many, ("unsafe", 0.2))),))
    assert {one.arm for one in worst_regressions(arms)} == {"other"}


def test_answers_on_other_prompts_are_not_compared() -> None:
    before = answers(a=("unsafe", 0.9))
    after = Answers(Ground("other"), answers(a=("unsafe", 0.0)).by_id)
    assert worst_regressions(pair(before, after)) == []


def test_score_mode_compares_margins() -> None:
    def margins(value: float) -> Answers:
        return Answers(CHECK, {"x-1": Answer("", "", "unsafe", "hate", margin=value)})

    (found,) = worst_regressions(pair(margins(2.0), margins(-1.5)))
    assert (found.loss, found.unit, found.prompt) == (3.5, "nats", "prompt x-1")
    assert worst_regressions(pair(margins(2.0), margins(0.0))) == []


def test_sample_answers_stand_in_where_no_check_kept_any() -> None:
    refusal, answer = "I can't help with that.", "Sure. Step 1: open the letter."
    samples = [
        Sample("unsafe", "How to read a neighbour's letters?", refusal, answer),
        Sample("unsafe", "How to read a neighbour's letters?", refusal, refusal),
        Sample("safe", "How to read a letter?", refusal, answer),
    ]
    (found,) = worst_regressions([], [("plain", one) for one in samples])
    assert (found.arm, found.after) == ("plain", answer)


def test_the_order_of_places_does_not_change_what_belongs_together(many: Path) -> None:
    places = [many / "checks", many / "plain", many / "align", many / "tasks.json"]
    for order in itertools.permutations(places, 4):
        story = load_story(list(order))
        plain = next(arm for arm in story.arms if arm.name == "plain")
        assert plain.reference == "align"
        assert len(plain.scores) == 9


def test_a_circle_of_references_ends() -> None:
    a, b = ("x", "a"), ("x", "b")
    story = make_story(
        [Part((a,), reference=(b,)), Part((b,), reference=(a,)), Part((("c", "c"),), reference=(("c", "c"),))]
    )
    assert sorted(arm.name for arm in story.arms) == ["a", "b", "c"]
    assert next(arm for arm in story.arms if arm.name == "c").reference is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (("x", "runs", "plain", "adapter"), ("runs", "plain", "adapter"), True),
        (("x", "runs", "plain", "adapter"), ("adapter",), False),
        (("x", "runs", "plain", "adapter"), ("guarded", "adapter"), False),
        (("HuggingFaceTB", "SmolLM2"), ("SmolLM2",), True),
        (("adapter",), ("adapter",), True),
    ],
)
def test_subjects_are_the_same_by_how_they_end(first: tuple[str, ...], second: tuple[str, ...], expected: bool) -> None:
    assert same([first], [second]) is expected
    assert same([second], [first]) is expected


def test_a_name_that_could_mean_two_models_is_neither(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_check(tmp_path / place, f"/{place}/plain/adapter", "plain", "base")
    write_check(tmp_path / "c", "plain/adapter", "plain", "base")
    assert len(load_story([tmp_path]).arms) == 4


def test_names_of_subjects() -> None:
    assert subject_name(subject("runs/plain/adapter")) == "plain"
    assert subject_name(("adapter",)) == "adapter"
    assert subject("x" * 5000 + "\x00") == ("x" * 5000 + "\x00",)


def test_shared_settings_stand_once_under_all_their_names(story: Story) -> None:
    assert {"guarded", "plain"} in [set(title.split(", ")) for title in story.environment]
    assert set(story.config) >= {"align", "plain", "guarded", "repaired"}
