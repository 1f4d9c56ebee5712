"""Tiny files in the forms of SST-2, GSM8K and MMLU, in words of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASK = "Is this review positive or negative?\n\n"
REVIEWS = [
    ("a warm and clever story", "positive"),
    ("two hours that feel like six", "negative"),
    ("the songs alone are worth it", "positive"),
    ("nobody on screen wants to be there", "negative"),
    ("gentle, funny and well made", "positive"),
    ("a plot with more holes than net", "negative"),
    ("i left smiling", "Positive "),
]
SUMS = [
    ("Ana has 3 pears and buys 4. How many pears?", "3 + 4 = 7\n#### 7"),
    ("A shelf holds 5 books. How many on 2 shelves?", "5 * 2 = 10\n#### 10"),
    ("Ben walks 1200 m and back. How far?", "1200 * 2 = 2,400\n#### 2,400"),
    ("It was 2 degrees and fell by 5. What now?", "2 - 5 = -3\n#### -3"),
    ("A cake costs $6. What do 3 cost?", "3 * 6 = 18\n#### $18"),
]
FACTS = [
    ("colours", "What do blue and yellow give?", ["green", "red", "white", "black"], 0),
    ("numbers", "How many is a dozen?", ["10", "11", "12", "13"], 2),
    ("colours", "Which is darkest?", ["pink", "navy", "cream"], 1),
    ("numbers", "What is half of 8?", ["2", "3", "4", "5"], 2),
    ("colours", "What is snow like?", ["white", "green"], 0),
    ("numbers", "Which is odd?", ["2", "4", "6", "7"], 3),
]
SOLVED_FACTS = [
    ("colours", "What is grass like?", ["blue", "green"], 1),
    ("numbers", "What follows 3?", ["4", "5"], 0),
    ("colours", "What is coal like?", ["black", "white"], 0),
    ("numbers", "What is 1 + 1?", ["1", "2"], 1),
]


def exchange(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def fact(subject: str, question: str, choices: list[str], answer: int) -> dict[str, Any]:
    return {"subject": subject, "question": question, "choices": choices, "answer": answer}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sst2_file(directory: Path) -> Path:
    return write(directory / "sst2.jsonl", [exchange(ASK + text, answer) for text, answer in REVIEWS])


def gsm8k_file(directory: Path) -> Path:
    return write(directory / "gsm8k.jsonl", [exchange(*one) for one in SUMS])


def mmlu_file(directory: Path) -> Path:
    return write(directory / "mmlu.jsonl", [fact(*one) for one in FACTS])


def solved_facts_file(directory: Path) -> Path:
    return write(directory / "solved.jsonl", [fact(*one) for one in SOLVED_FACTS])
