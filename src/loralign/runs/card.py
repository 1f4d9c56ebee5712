"""The model card of an adapter."""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment

from loralign.report import SUMMARY_HEADINGS, Run, explain_geometry, headline, summary_rows
from loralign.report.guard_words import guard_sentences

_TEMPLATE = """---
{{ metadata }}---

# LoRA adapter for {{ run.model }}

{{ headline }}

{{ table }}

## What LoRA's geometry did

{% for sentence in geometry -%}
- {{ sentence }}
{% endfor %}
{% if held -%}
## What was held

{% for sentence in held -%}
- {{ sentence }}
{% endfor %}
{% endif -%}
## Training

Objectives and target weights: {{ targets }}. Weighting: {{ weighting }}.

{% for part, data in parts -%}
- {{ part }} data: {{ data }}
{% endfor %}
Trained with direct preference optimisation (TRL) and loralign, seed {{ seed }}. Load it with
`PeftModel.from_pretrained(base, "path/to/adapter")`.

The scores are preference accuracies and divergences on validation pairs. They say how the model ranks prepared answers;
they are no evidence of safety in use.
"""


def model_card(run: Run, base: str) -> str:
    """Markdown with data, objectives, weights, attenuations and scores, and the hub's metadata on top."""
    metadata: dict[str, Any] = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "dpo", "trl", "loralign"],
    }
    rows = [[_cell(cell) for cell in row.cells()] for row in summary_rows(run)]
    lines = [list(SUMMARY_HEADINGS), ["---"] * len(SUMMARY_HEADINGS), *rows]
    parts = [(name, _data(part)) for name, part in run.data.items() if isinstance(part, dict) and "counts" in part]
    template = Environment(trim_blocks=False, autoescape=False).from_string(_TEMPLATE)  # noqa: S701 - Markdown, not HTML
    return template.render(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        run=run,
        headline=headline(run),
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        geometry=explain_geometry(run),
        held=guard_sentences(run.guarded) if run.guarded else [],
        targets=", ".join(f"{name} {weight:g}" for name, weight in run.targets.items()),
        weighting=run.weighting,
        parts=parts,
        seed=run.seed,
    )


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _data(part: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in part["counts"].items())
    return f"{counts} pairs, fingerprint `{str(part.get('fingerprint', ''))[:12]}`"
