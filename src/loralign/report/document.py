"""What every page shares: one self-contained HTML document with its scripts, styles, samples and settings.

Everything that comes from a run reaches the page through Jinja's automatic escaping or as JSON with ``<``, ``>`` and
``&`` escaped. Beyond that, the page's content security policy runs only the scripts whose hashes it names and allows no
connection, so that even a mistake in the escaping could neither run code nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Protocol

import jinja2
from plotly.offline import get_plotlyjs

from loralign.report.records import Sample
from loralign.report.theme import Chart, Table

MOST_SAMPLES = 24
"""Sample answers shown at most."""

LONGEST_TEXT = 6000
"""Characters of one prompt or answer shown at most."""


class Reported(Protocol):
    """What every kind of run has that goes into its page."""

    @property
    def name(self) -> str:
        """The run directory's name."""

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the command that started it."""

    @property
    def config(self) -> dict[str, Any]:
        """Nested settings."""

    @property
    def data(self) -> dict[str, Any]:
        """Nested facts on its data."""

    @property
    def environment(self) -> dict[str, Any]:
        """Nested facts on machine and packages."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Prompts with answers before and after."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was missing, damaged or cut off, in plain sentences."""


def render_document(template: str, run: Reported, content: Mapping[str, Any]) -> str:
    """Return the page of a run as HTML.

    Args:
        template: file name of a template that extends ``layout.html.j2``.
        run: whose page it is.
        content: what the template needs besides: ``headline``, ``facts`` and its own sections.
    """
    return render_page(
        template,
        content,
        run=run,
        samples=run.samples[:MOST_SAMPLES],
        hidden_samples=max(0, len(run.samples) - MOST_SAMPLES),
        longest=LONGEST_TEXT,
        settings={
            title: Table(("setting", "value"), rows)
            for title, value in (("Configuration", run.config), ("Data", run.data), ("Environment", run.environment))
            if (rows := setting_rows(value))
        },
        command=shlex.join(run.command),
    )


def render_figure(chart: Chart) -> str:
    """Return a page with one chart as HTML."""
    return render_page("figure.html.j2", {"item": chart})


def setting_rows(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Every leaf of nested settings, its dotted path and its value as text."""
    return tuple(_flatten(settings))


def render_page(template: str, content: Mapping[str, Any], **more: Any) -> str:
    """Return a template filled in, with scripts and styles and the digests that its security policy names.

    Args:
        template: file name in ``templates/``.
        content: what it needs.
        **more: the same.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loralign.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = _figure_json
    plotly, script, css = get_plotlyjs(), _asset("report.js"), _asset("report.css")
    return environment.get_template(template).render(
        content,
        **more,
        css=css,
        plotly=plotly,
        script=script,
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
    )


def _asset(name: str) -> str:
    return (files("loralign.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _figure_json(chart: Chart) -> str:
    """Return a figure as JSON that cannot end the element it stands in."""
    text: str = chart.figure.to_json()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of nested settings with its dotted path; short lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}[{index}]")
    elif isinstance(value, (Mapping, list)):
        yield path, ", ".join(map(plain, value)) or "none"
    else:
        yield path, plain(value)


def plain(value: Any) -> str:
    """Return a setting's value as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
