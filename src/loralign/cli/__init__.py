"""The ``loralign`` command."""

from loralign.cli.main import main

__all__ = ["main"]
