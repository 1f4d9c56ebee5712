"""A page as a browser would parse it, and what no text in a run may do to it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "<a href='javascript:alert(1)'>x</a>",
    "\ud800\x00\u202eevil",
    "x" * 50_000,
)


class Page(HTMLParser):
    """Collects elements, and the text in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts.append((self._script, data))

    def code(self) -> list[str]:
        return [text for attributes, text in self.scripts if attributes.get("type") != "application/json"]

    def figures(self) -> dict[str, Any]:
        return {str(a["data-plot"]): json.loads(text) for a, text in self.scripts if "data-plot" in a}


def check_inert(found: Page, ordinary: Page) -> None:
    """Fail if hostile text has become code, an element, an attribute or markup that plotly would read."""
    assert len(found.code()) == 2
    assert found.code()[1] == ordinary.code()[1]
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in ordinary.elements} | {"aside"}
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not str(attributes.get("href", "#")).startswith("javascript")
    assert "<" not in json.dumps(found.figures()).replace("<br>", "").replace("<extra></extra>", "")
    assert "\x00" not in found.text
    assert "\u202e" not in found.text
