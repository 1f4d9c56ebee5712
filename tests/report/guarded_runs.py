"""A synthetic guarded alignment: the objectives of one run, and the guard of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.report.adaptation_runs import about as adaptation
from tests.report.adaptation_runs import guard_records, write_json
from tests.report.adaptation_runs import scores as adaptation_scores
from tests.report.conftest import about, write_lines, write_run

KEPT = ("drift", "logprob_lost", "safety_before", "safety_after", "share")


def guarded_about() -> dict[str, Any]:
    own, other = about(), adaptation()
    return own | {
        "subspace": other["subspace"],
        "config": own["config"] | {"guard": other["config"]["guard"], "run": {"guard": "auto"}},
        "data": own["data"] | {"probe": 48, "probe_tokens": 2, "probe_prompts_in_training": 0},
    }


def write_guarded(directory: Path) -> Path:
    write_run(directory)
    write_lines(directory / "guard.jsonl", [record for record in guard_records() if record["kind"] != "task"])
    write_json(directory, "run.json", guarded_about())
    scores = json.loads((directory / "scores.json").read_text(encoding="utf-8"))
    write_json(directory, "scores.json", scores | {name: adaptation_scores()[name] for name in KEPT})
    return directory
