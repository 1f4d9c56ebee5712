"""Rows for the tests of this directory."""

from __future__ import annotations

from typing import Any


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pair(number: int = 0, objective: str | None = "helpful") -> dict[str, Any]:
    row: dict[str, Any] = {
        "prompt": [message("user", f"question {number}")],
        "chosen": [message("assistant", f"good {number}")],
        "rejected": [message("assistant", f"bad {number}")],
    }
    return row if objective is None else {**row, "objective": objective}


def plain_pair(number: int = 0, objective: str | None = "helpful") -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": f"Q {number} A:", "chosen": f" good {number}", "rejected": f" bad {number}"}
    return row if objective is None else {**row, "objective": objective}
