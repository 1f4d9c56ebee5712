"""The look that all charts share: colours by objective, symbols, axes, and how text reaches plotly.

Colours are names of CSS variables (``var(--objective-1)``), resolved in the browser, so that one figure serves the
light and the dark page. The palette follows Okabe and Ito's, with a lighter and a darker variant of each
hue in the style sheet.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import plotly.graph_objects as go

T = TypeVar("T")

PALETTE_SIZE = 8
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash")
MOST_POINTS = 1500
DIVERGING = ((0.0, "var(--cold)"), (0.5, "var(--middle)"), (1.0, "var(--warm)"))
SEQUENTIAL = "Cividis"


@dataclass(frozen=True)
class Table:
    """Text cells under headings; the first column names the row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A figure with what a reader without it needs: title, a sentence on how to read it, and its numbers as a table."""

    key: str
    title: str
    note: str
    figure: go.Figure
    table: Table | None = None


def colour(index: int) -> str:
    """Return the colour of the objective at ``index``; it repeats after eight, told apart by dash and symbol."""
    return f"var(--objective-{index % PALETTE_SIZE + 1})"


def symbol(index: int) -> str:
    """Return the marker of the objective at ``index``."""
    return SYMBOLS[index % len(SYMBOLS)]


def dash(index: int) -> str:
    """Return the line style of the objective at ``index``: the second eight are dashed."""
    return DASHES[index // PALETTE_SIZE % len(DASHES)]


def label(text: str, longest: int = 40) -> str:
    """Return a name as inert text for plotly, which would otherwise read tags and links in it."""
    flat = " ".join(text.split())
    return html.escape(flat if len(flat) <= longest else f"{flat[: longest - 1]}…", quote=False)


def thin(records: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """Return at most about ``most`` of the records, evenly taken, always with the last."""
    if len(records) <= most:
        return list(records)
    stride = -(-len(records) // most)
    return [*records[:-1:stride], records[-1]]


def style(figure: go.Figure, *, height: int, time: bool = False) -> go.Figure:
    """Apply the shared layout; ``time`` charts get one hover label per step."""
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 56, "r": 16, "t": 28, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
        hoverlabel={
            "bgcolor": "var(--card)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)", "size": 13},
            "align": "left",
        },
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="x unified" if time else "closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "var(--line)", "activecolor": "var(--accent)"},
        dragmode="zoom" if time else False,
    )
    axis = {"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zerolinecolor": "var(--line)", "automargin": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(font={"size": 13, "color": "var(--ink)"})
    return figure
