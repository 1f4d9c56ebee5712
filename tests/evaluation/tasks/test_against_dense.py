"""The harness's numbers against what each question alone gives, computed densely in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from loralign.evaluation.tasks.harness import task_scores
from loralign.evaluation.tasks.local import local_task
from loralign.evaluation.tasks.scores import TaskSample, TaskScores
from tests.evaluation.models import build, character_tokenizer, dense_statistics, with_adapter
from tests.evaluation.tasks.files import (
    ASK,
    FACTS,
    REVIEWS,
    SOLVED_FACTS,
    SUMS,
    exchange,
    gsm8k_file,
    mmlu_file,
    solved_facts_file,
    sst2_file,
    write,
)
from tests.evaluation.test_samples import greedy


def prompt_text(tokenizer: Any, question: str) -> str:
    if tokenizer.chat_template is None:
        return question
    turns = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def log_likelihood(model: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    # White space between question and answer counts as a part of the answer.
    start = len(prompt.rstrip())
    ids = tokenizer(text=prompt + continuation)["input_ids"]
    # In these tokenizers a character or a special token is one id.
    start = len(tokenizer(text=prompt[:start])["input_ids"])
    return dense_statistics(model, None, ids[:start], ids[start:])[0]


def letters(question: str, choices: list[str]) -> str:
    lines = [question, *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=False)), "Answer:"]
    return "\n".join(lines)


def samples_of(scores: TaskScores) -> list[TaskSample]:
    assert scores.samples is not None
    return list(scores.samples)


@pytest.mark.parametrize("template", [True, False], ids=["chat", "plain"])
@pytest.mark.parametrize("kind", ["base", "adapter", "merged"])
def test_choices_are_those_of_the_dense_log_likelihoods(tmp_path: Path, kind: str, template: bool) -> None:
    tokenizer = character_tokenizer() if template else character_tokenizer(None)
    model: Any = build("llama") if kind == "base" else with_adapter(build("llama"), std=0.2)
    if kind == "merged":
        model = model.merge_and_unload()
    model.eval()
    scores = task_scores(
        model,
        tokenizer,
        [local_task("sst2", sst2_file(tmp_path)), local_task("mmlu", mmlu_file(tmp_path))],
        batch_size=3,
        keep_samples=True,
        show_progress=False,
    )
    between = {"local_sst2": "" if template else "\n", "local_mmlu": "" if template else " "}
    asked = [("local_sst2", ASK + text, ["negative", "positive"], int("pos" in a.lower())) for text, a in REVIEWS]
    asked += [("local_mmlu", letters(text, of), list("ABCD")[: len(of)], right) for _, text, of, right in FACTS]
    right: dict[str, list[bool]] = {"local_sst2": [], "local_mmlu": []}
    for (task, question, choices, answer), sample in zip(asked, samples_of(scores), strict=True):
        prompt = prompt_text(tokenizer, question)
        assert (sample.task, sample.prompt, sample.target) == (task, prompt, str(answer))
        dense = [log_likelihood(model, tokenizer, prompt, between[task] + choice) for choice in choices]
        assert sample.response == pytest.approx(dense, abs=1e-3)
        right[task].append(dense.index(max(dense)) == answer)
        assert sample.values == {"acc": float(right[task][-1])}
    assert {one.task: one.value for one in scores.scores} == pytest.approx(
        {task: sum(ones) / len(ones) for task, ones in right.items()}
    )
    assert [one.n for one in scores.scores] == [7, 6]


def numbers(text: str) -> tuple[str | None, str | None]:
    marked = re.search(r"####\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)", text)
    every = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return (marked[1].replace(",", "") if marked else None), (every[-1].replace(",", "") if every else None)


def test_written_answers_are_those_of_greedy_decoding(tmp_path: Path) -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    # The right answers are what the model writes, in every second question.
    questions = [question for question, _ in SUMS]
    texts = [
        greedy(model, tokenizer, tokenizer(text=prompt_text(tokenizer, question))["input_ids"], 40)
        for question in questions
    ]
    last = [numbers(text)[1] for text in texts]
    assert sum(one is not None for one in last) >= 2
    answers = [
        f"So it is\n#### {found}" if found is not None and index % 2 == 0 else "So it is\n#### 123456"
        for index, found in enumerate(last)
    ]
    path = write(tmp_path / "sums.jsonl", [exchange(*one) for one in zip(questions, answers, strict=True)])
    scores = task_scores(
        model,
        tokenizer,
        [local_task("gsm8k", path)],
        max_new_tokens=40,
        batch_size=2,
        keep_samples=True,
        show_progress=False,
    )
    by_filter = {one.filter: one for one in scores.scores}
    right = [found is not None and index % 2 == 0 for index, found in enumerate(last)]
    assert 0 < sum(right) < len(right)
    assert by_filter["last-number"].value == pytest.approx(sum(right) / len(right))
    marked = [numbers(text)[0] == answer.split("#### ")[1] for text, answer in zip(texts, answers, strict=True)]
    assert by_filter["marked"].value == pytest.approx(sum(marked) / len(marked))
    found = [one for one in samples_of(scores) if one.filter == "last-number"]
    assert [str(one.response).strip() for one in found] == [text.split("\n\n\n")[0].strip() for text in texts]
    assert [one.values["exact_match"] for one in found] == [float(one) for one in right]


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("1 + 1 = 2\n#### 2", 1.0, 1.0),
        ("it is 2 of 7", 0.0, 0.0),
        ("7 less 5 is 2.", 0.0, 1.0),
        ("#### 2\n\n#### 3", 1.0, 0.0),
        ("#### $2", 1.0, 1.0),
        ("two", 0.0, 0.0),
    ],
)
def test_which_number_of_a_text_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, marked: float, last: float
) -> None:
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", lambda self, requests: [text] * len(requests))
    path = write(tmp_path / "sums.jsonl", [exchange("1 + 1?", "1 + 1 = 2\n#### 2")])
    scores = task_scores(build("llama"), character_tokenizer(), [local_task("gsm8k", path)], show_progress=False)
    assert {one.filter: one.value for one in scores.scores} == {"marked": marked, "last-number": last}


def test_a_thousands_separator_is_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until", lambda self, requests: ["#### 2,400", "#### 1000"]
    )
    rows = [exchange("How far?", "#### 2400"), exchange("How many?", "#### 1,000")]
    task = local_task("gsm8k", write(tmp_path / "sums.jsonl", rows))
    scores = task_scores(build("llama"), character_tokenizer(), [task], show_progress=False)
    assert [one.value for one in scores.scores] == [1.0, 1.0]


def test_solved_examples_of_mmlu_are_of_the_same_subject(tmp_path: Path) -> None:
    tokenizer, model = character_tokenizer(None), build("llama")
    task = local_task("mmlu", mmlu_file(tmp_path), examples=solved_facts_file(tmp_path))
    scores = task_scores(model, tokenizer, [task], keep_samples=True, show_progress=False)
    assert [one.fewshot for one in scores.scores] == [2]
    for (subject, question, choices, _), sample in zip(FACTS, samples_of(scores), strict=True):
        solved = [
            letters(text, of) + " " + "ABCD"[right] + "\n\n" for one, text, of, right in SOLVED_FACTS if one == subject
        ]
        assert sample.prompt == "".join(solved) + letters(question, choices)


def test_solved_sums_show_the_whole_way(tmp_path: Path) -> None:
    tokenizer, model = character_tokenizer(), build("llama")
    solved = write(tmp_path / "solved.jsonl", [exchange("1 + 1?", "It is 2.\n#### 2")])
    task = local_task("gsm8k", gsm8k_file(tmp_path), examples=solved)
    scores = task_scores(model, tokenizer, [task], limit=1, max_new_tokens=4, keep_samples=True, show_progress=False)
    assert samples_of(scores)[0].prompt == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\nIt is 2.\n#### 2<|im_end|>\n"
        f"<|im_start|>user\n{SUMS[0][0]}<|im_end|>\n<|im_start|>assistant\n"
    )
