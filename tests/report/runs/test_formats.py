"""Markdown, JSON and CSV say the same as the page, and hold nothing that could act."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from loralign.report.records import Metric
from loralign.report.runs.compare import comparison_tables
from loralign.report.runs.formats import CSV_HEADINGS, render_csv, render_json, render_markdown
from loralign.report.runs.records import REFUSAL, Ground, Part, Score
from loralign.report.runs.story import Story, make_story


def test_json_holds_everything_but_the_other_answers(story: Story) -> None:
    found = json.loads(render_json(story))
    assert (found["format"], found["version"]) == ("loralign.report", 1)
    assert found["headline"] == story.headline
    assert [arm["name"] for arm in found["arms"]] == [arm.name for arm in story.arms]
    plain = found["arms"][2]
    refusal = next(score for score in plain["scores"] if score["quantity"]["key"] == "refusal")
    assert refusal["metric"] == {"value": 0.6, "low": 0.57, "high": 0.63}
    assert refusal["change"]["value"] == pytest.approx(-0.32)
    assert plain["categories"]
    assert plain["curves"][0]["points"]
    assert "answers" not in plain
    assert len(found["regressions"]) == 10
    assert found["commands"][0]["command"][:2] == ["loralign", "align"]


def test_json_has_no_word_for_numbers_that_are_not_finite() -> None:
    story = make_story([Part((("a",),), config={"x": [float("nan"), {"y": float("inf")}]})])
    assert json.loads(render_json(story))["configuration"] == {"a": {"x": [None, {"y": None}]}}


def test_csv_has_a_row_for_every_score_and_category(story: Story) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(story))))
    assert tuple(rows[0]) == CSV_HEADINGS
    assert len(rows) == sum(len(arm.scores) + len(arm.categories) for arm in story.arms)
    (row,) = [
        row
        for row in rows
        if (row["arm"], row["quantity"], row["category"]) == ("plain", "refusal", "")
        and row["measured_on"].startswith("DRIFTCHECK")
    ]
    assert (row["value"], row["low"], row["high"], row["paired"]) == ("0.6", "0.57", "0.63", "yes")
    assert float(row["change"]) == pytest.approx(-0.32)
    categories = [row for row in rows if row["arm"] == "plain" and row["category"] == "hate"]
    assert {row["label"] for row in categories} == {"safe", "unsafe"}


@pytest.mark.parametrize("evil", ["=HYPERLINK(1)", "+1", "-1+2", "@x", "\tx"])
def test_csv_holds_no_formula(evil: str) -> None:
    story = make_story([Part(((evil,),), name=evil, scores=(Score(REFUSAL, Ground(evil), Metric(-0.5)),))])
    (row,) = csv.DictReader(io.StringIO(render_csv(story)))
    assert row["arm"] == f"'{evil}"
    assert row["measured_on"] == f"'{evil}"
    assert row["value"] == "-0.5"


def test_markdown_has_the_headline_the_tables_and_the_commands(story: Story) -> None:
    text = render_markdown(story)
    assert text.startswith("Against align, plain gained 0.220 [0.187, 0.253] of local\\_sst2 acc")
    assert "| score | SmolLM2-135M-Instruct | align | plain | guarded | repaired |" in text
    assert "| local\\_sst2 acc | n/a | 0.610 [0.586, 0.634] |" in text
    assert "## Changes against the start" in text
    assert "## Unsafe prompts refused by category (DRIFTCHECK (generate mode))" in text
    assert "    loralign align --config" in text
    assert render_markdown(story, level=4).count("#### ") == text.count("## ")


def test_markdown_holds_no_answer_of_a_model(story: Story) -> None:
    assert "this is how it goes" not in render_markdown(story)
    assert any("this is how it goes" in one.after for one in story.regressions)


@pytest.mark.parametrize(
    "evil",
    ["<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://x.org/y)", "a | b", "<img src=x>", "`x`"],
)
def test_names_are_no_markup_in_markdown(evil: str) -> None:
    score = Score(REFUSAL, Ground(evil), Metric(0.5, 0.4, 0.6))
    text = render_markdown(make_story([Part(((evil,),), name=evil, scores=(score,), notes=(evil,))]))
    for raw in ("<script", "](", "<img", "http://", " `x`"):
        assert raw not in text.replace("\\<", "").replace("\\]", "").replace("\\`", "")
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {3}


def test_a_narrow_terminal_gets_the_table_in_parts(story: Story) -> None:
    (whole,) = comparison_tables(story, 400)
    parts = comparison_tables(story, 100)
    assert len(parts) > 1
    assert [name for part in parts for name in part.headings[1:]] == list(whole.headings[1:])
    assert all(part.headings[0] == "score" for part in parts)
    assert {row[0] for row in parts[1].rows} == {row[0] for row in whole.rows}
    assert len(comparison_tables(story, 10)) == len(story.arms)


def test_the_model_card_can_use_the_markdown_of_one_run(many: Path) -> None:
    from loralign.report.runs.story import load_story

    text = render_markdown(load_story([many / "plain"]), level=3)
    assert "| task loss (nats per token) on own held-back samples | 1.55 [1.46, 1.64] | 1.47 [1.38, 1.56] |" in text
