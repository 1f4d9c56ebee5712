"""The model card of a task adapter."""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment

from loralign.report import SCORE_HEADINGS, Adaptation, adaptation_headline, explain_guard, score_rows

_TEMPLATE = """---
{{ metadata }}---

# LoRA task adapter for {{ run.model }}

{{ headline }}

{{ table }}

## What was held

{% for sentence in sentences -%}
- {{ sentence }}
{% endfor %}
## Training

Supervised fine-tuning (TRL) and loralign, seed {{ run.seed }}, {{ run.data.train }} samples. Load it with
`PeftModel.from_pretrained(base, "path/to/adapter")`.

Drift is measured on prepared answers, and refusals are told by the phrases that answers begin with. Neither is evidence
of safety in use.
"""


def adapt_card(run: Adaptation, base: str) -> str:
    """Markdown with what the task gained and what alignment lost, and the hub's metadata on top.

    Args:
        run: a finished adaptation.
        base: the base's name to record.
    """
    metadata: dict[str, Any] = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "sft", "trl", "loralign"],
    }
    rows = [[_cell(cell) for cell in row] for row in score_rows(run)]
    lines = [list(SCORE_HEADINGS), ["---"] * len(SCORE_HEADINGS), *rows]
    template = Environment(autoescape=False).from_string(_TEMPLATE)  # noqa: S701 - Markdown, not HTML
    return template.render(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        run=run,
        headline=adaptation_headline(run),
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        sentences=explain_guard(run),
    )


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())
