"""Runs in which every text that a model or a user can choose is hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.report.adaptation_runs import share, write_json
from tests.report.runs.many import repair
from tests.report.test_adaptation_page import hostile_adaptation

ACTIONS = (
    "</script><script>document.documentElement.dataset.evil=1</script>",
    "<img src=x onerror=document.documentElement.dataset.evil=1>",
    "<svg onload=document.documentElement.dataset.evil=1>",
    '" autofocus onfocus="document.documentElement.dataset.evil=1',
    "<a href='javascript:document.documentElement.dataset.evil=1'>x</a>",
    "<iframe srcdoc='<script>parent.document.documentElement.dataset.evil=1</script>'></iframe>",
    "<img src='http://evil.test/pixel.png'><link rel=stylesheet href='http://evil.test/x.css'>",
    "<style>@import 'http://evil.test/y.css';</style><meta http-equiv=refresh content='0;url=http://evil.test/'>",
    "{{ 7 * 7 }}{% raw %}${alert(1)}",
    "]]><!--",
    "\u2028\u2029\u202eevil",
    "\x00\x08\x1b[2J",
)
"""What would act, load or mislead where it is taken for markup, script or a template."""

HUGE = "A line that does not end. " * 40_000
"""About 1 MB on one line."""

BROKEN = b"broken \xff\xfe\xed\xa0\x80 bytes called text"
"""Bytes that are no UTF-8, with a lone surrogate among them."""


def write_hostile(directory: Path, evil: str) -> Path:
    """An adaptation, a repair, a checked pair and task scores, all of whose texts are ``evil``."""
    adapted = directory / "adapted"
    adapted.mkdir(parents=True)
    hostile_adaptation(adapted, evil)
    repaired = directory / "repaired"
    repaired.mkdir()
    report = repair()
    report["report"] |= {"method": evil, "layers": [{"name": evil, "removed": 0.5}], evil: evil}
    write_json(repaired, "repair.json", report | {"adapter": evil, "command": [evil], "model": evil})
    for name, refused in (("before", 0.9), ("after", 0.1)):
        write_hostile_check(directory / name, evil, name, refused)
    score = {"model": f"{evil} base", "adapter": evil, "task": evil, "metric": evil, "filter": evil, "value": 0.5}
    write_json(directory, "tasks.json", {"format": "loralign.tasks", "version": 1, "results": [score]})
    return directory


def write_hostile_check(directory: Path, evil: str, name: str, refused: float) -> None:
    directory.mkdir()
    run: dict[str, Any] = {
        "version": 1,
        "kind": "driftcheck",
        "command": [evil],
        "model": f"{evil} {name}",
        "baseline": f"{evil} before" if name == "after" else None,
        "set": {"fingerprint": evil, "part": evil},
        "against": evil,
        "mode": evil,
        "environment": {evil: [evil]},
        "options": {evil: evil},
    }
    write_json(directory, "run.json", run)
    scores = {
        "format": "loralign.driftcheck.scores",
        "version": 1,
        "refusal": share(refused),
        "categories": [{"category": evil, "label": "unsafe", "prompts": 2, "refused": share(refused)}],
        "drift_reduction": {"refusal": share(0.5) | {"note": evil}},
    }
    write_json(directory, "scores.json", scores)
    texts = [evil, HUGE] if len(evil) < len(HUGE) else [evil]
    raw = [text.encode("utf-8", "surrogatepass") for text in texts] + [BROKEN]
    column = pa.array(raw, type=pa.large_binary())
    # Parquet readers take these bytes for text without looking at them.
    text = pa.Array.from_buffers(pa.large_string(), len(raw), column.buffers())
    table = pa.table(
        {
            "id": [str(number) for number in range(len(raw))],
            "label": ["unsafe"] * len(raw),
            "category": [evil.encode("utf-8", "replace").decode()] * len(raw),
            "prompt": text,
            "response": text,
            "refused": [refused] * len(raw),
        }
    )
    pq.write_table(table, directory / "responses.parquet")
