"""Labelled prompts as DRIFTCHECK's sets have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    id: str
    prompt: str
    label: str = "safe"
    category: str = "general"
    part: str = "test"


def asked_prompts(count: int = 9) -> list[Asked]:
    return [
        Asked(f"p{index}", f"Question {index}" + "?" * (7 * index % 40), ("safe", "unsafe")[index % 2], "privacy")
        for index in range(count)
    ]
