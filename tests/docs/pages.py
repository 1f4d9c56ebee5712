"""Reading the documentation: its code blocks, the files that it shows, its links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

_BLOCK = re.compile(r"^(?:<!-- (?P<note>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the note in a comment above it, its text, and its first line in the page."""

    language: str
    note: str
    text: str
    line: int


def blocks(page: str, language: str) -> list[Block]:
    """The page's blocks of one language, in order."""
    content = PAGES[page].read_text(encoding="utf-8")
    return [
        Block(found["language"], found["note"] or "", found["text"], content[: found.start("text")].count("\n") + 1)
        for found in _BLOCK.finditer(content)
        if found["language"] == language
    ]


def commands(page: str) -> list[list[str]]:
    """Every command of the page's shell blocks as words; continued lines are one command, comments are left out."""
    lines = "\n".join(block.text for block in blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shown_files(page: str, kind: str = "file") -> dict[str, str]:
    """The files whose content the page shows: those with ``<!-- file: NAME -->`` above the block."""
    marked = [block for language in ("json", "yaml") for block in blocks(page, language)]
    return {block.note.removeprefix(f"{kind}: "): block.text for block in marked if block.note.startswith(f"{kind}: ")}


def links(page: str) -> list[str]:
    """Targets of the page's links and images, code left out."""
    return _LINK.findall(_BLOCK.sub("", PAGES[page].read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", _BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
