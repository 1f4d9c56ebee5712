"""Reading the JSON files that a report cannot do without: one clear error, with its place, for whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralign.errors import StateError
from loralign.report.coerce import parse, read_text


def read_object(path: Path, fix: str, *, form: str | None = None, version: int | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        fix: what to do where it is not what it should be.
        form: value that its ``format`` must have.
        version: value that its ``version`` (or ``format_version``) must have.

    Raises:
        StateError: it is absent, is not a JSON object, or is of another format or version.
    """
    try:
        found = parse(read_text(path))
    except OSError as error:
        raise StateError(f"cannot be read: {error.strerror or error}", place=str(path), fix=fix) from error
    except ValueError as error:
        raise StateError(f"not valid JSON: {error}", place=str(path), fix=fix) from error
    if not isinstance(found, dict):
        raise StateError("not a JSON object", place=str(path), fix=fix)
    if form is not None and found.get("format") != form:
        raise StateError(f"the format {found.get('format')!r:.60} is not {form!r}", place=str(path), fix=fix)
    stated = found.get("version", found.get("format_version"))
    if version is not None and stated != version:
        raise StateError(
            f"version {stated!r:.40} is unknown, only {version} can be read",
            place=str(path),
            fix="use the loralign release that wrote it",
        )
    return found
