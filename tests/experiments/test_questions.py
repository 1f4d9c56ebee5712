from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loralign.experiments.cell import known_settings
from loralign.experiments.questions import question, results_directory

ASKED: dict[str, Any] = {"own": {"arms": ["plain"]}, "seeds": (0, 1), "base": {"lora_r": 4}}


@pytest.mark.parametrize(
    "change", [{"own": {"arms": ["plain", "full"]}}, {"seeds": (0, 1, 2)}, {"base": {"lora_r": 8}}]
)
def test_other_arms_seeds_or_recipes_are_another_question(change: dict[str, Any]) -> None:
    assert question(**{**ASKED, **change}) != question(**ASKED)
    assert question(**{**ASKED, "seeds": (1, 0)}) == question(**ASKED)


def test_a_question_knows_its_data_by_content(tmp_path: Path) -> None:
    def asked(place: Path) -> str:
        own, base = {"pretraining_data": [str(place)]}, {"data": [str(place)], "lora_r": 4}
        return question(known_settings(own), (0,), known_settings(base))

    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("1\n")
    second.write_text("1\n")
    before = asked(first)
    assert asked(second) == before
    first.write_text("22\n")
    assert asked(first) != before


def test_another_number_of_processes_is_another_question() -> None:
    assert question(**ASKED, accelerate="--num_processes 2") != question(**ASKED)


def test_every_question_keeps_its_place_and_the_first_has_the_plain_name(tmp_path: Path) -> None:
    first, second, third = "a" * 64, "b" * 64, "c" * 64
    found = [results_directory(tmp_path, "sweep-adapt", asked).name for asked in (first, second, third, first, second)]
    assert found == ["sweep-adapt", "sweep-adapt-bbbbbbbb", "sweep-adapt-cccccccc", "sweep-adapt", found[1]]
    # A question under its own name goes on there, whatever becomes of the plain one.
    for file in (tmp_path / "results" / "sweep-adapt").iterdir():
        file.unlink()
    assert results_directory(tmp_path, "sweep-adapt", second).name == "sweep-adapt-bbbbbbbb"
    assert results_directory(tmp_path, "sweep-adapt", "d" * 64).name == "sweep-adapt"


@pytest.mark.parametrize("file", ["index.html", "question.json"])
def test_results_that_do_not_say_what_they_answer_are_left_alone(tmp_path: Path, file: str) -> None:
    (tmp_path / "results" / "stability").mkdir(parents=True)
    (tmp_path / "results" / "stability" / file).write_text("[")
    assert results_directory(tmp_path, "stability", "a" * 64).name == "stability-aaaaaaaa"
    assert (tmp_path / "results" / "stability" / file).read_text() == "["
