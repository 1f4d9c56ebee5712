"""The measured part of an adapter's model card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from loralign.errors import OutputError
from loralign.files import write_text
from loralign.report.runs.formats import render_markdown
from loralign.report.runs.story import Story

_BEGIN, _END = "<!-- measured by loralign -->", "<!-- end of what loralign measured -->"
_PART = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", re.DOTALL)


def update_card(story: Story, adapter: Path) -> Path:
    """Write what was measured into the model card of an adapter, in place of what an earlier call wrote there.

    The rest of the card stays as it is; where there is none, it is begun with the metadata that the hub asks for.
    Answers of the model and commands, which hold paths of this machine, are left out.

    Args:
        story: what is told.
        adapter: a PEFT adapter's directory.

    Returns:
        The card.

    Raises:
        OutputError: the directory holds no adapter, or its card cannot be read.
    """
    card = adapter / "README.md"
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        text = card.read_text(encoding="utf-8") if card.exists() else _begun(config)
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(
            f"has no adapter with a card: {type(error).__name__}", place=str(adapter), fix="name an adapter's directory"
        ) from error
    measured = f"{_BEGIN}\n## What was gained and lost\n\n{render_markdown(story, level=3, commands=False)}\n{_END}\n"
    kept = _PART.sub("", text).rstrip("\n")
    write_text(card, f"{kept}\n\n{measured}")
    return card


def _begun(config: dict[str, object]) -> str:
    metadata = {
        "base_model": str(config.get("base_model_name_or_path") or "unknown"),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "loralign"],
    }
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# LoRA adapter\n"
