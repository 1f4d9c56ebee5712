"""Files and flags for the commands that hold, find and mend alignment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.training.runs import pairs

MODULES = ("--lora_target_modules", "q_proj", "down_proj")
QUICK = (
    *("--max_steps", "3", "--lora_r", "4", *MODULES, "--samples", "2", "--save_steps", "1", "--probe_every", "1"),
    *("--validation_samples", "4", "--judged_prompts", "4", "--fisher_samples", "12", "--probe_samples", "6"),
    *("--max_length", "96", "--learning_rate", "1e-2"),
)
FISHER = ("--target-modules", "q_proj", "--target-modules", "down_proj", "--samples", "12", "--rank", "4")


def write_task(path: Path, count: int = 16, **changes: Any) -> Path:
    """Conversations as JSONL; ``changes`` replace fields of the second row."""
    rows: list[dict[str, Any]] = [{"messages": row["prompt"] + row["chosen"]} for row in pairs(count)]
    rows[1].update(changes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_alignment(path: Path, count: int = 24, labels: tuple[str, ...] = ("unsafe", "safe"), seed: int = 5) -> Path:
    """Prompts with responses and labels, a third of them for validation."""
    rows = [
        {
            "prompt": row["prompt"],
            "completion": row["chosen"],
            "label": labels[index % len(labels)],
            "category": "violence" if index % 3 else "privacy",
            "split": "validation" if index % 3 == 2 else "train",
        }
        for index, row in enumerate(pairs(count, seed=seed))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
