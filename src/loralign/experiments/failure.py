"""How a cell tells that it failed."""

from __future__ import annotations


class CellFailed(Exception):  # noqa: N818 - a state of a cell, which an experiment survives
    """A cell that did not finish; the experiment goes on with the others."""
