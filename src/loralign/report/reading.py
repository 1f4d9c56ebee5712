"""Reading the files that every kind of run directory has: a description, a log by lines, optional JSON beside them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from loralign.errors import StateError
from loralign.report.coerce import clean_text, mapping, number, parse, read_text
from loralign.report.records import Metric, Sample

RUN_VERSION = 1
"""The version of ``run.json`` that this reader knows."""

ALIGN = "align"
"""The kind of a run whose ``run.json`` names none."""

Record = tuple[int, dict[str, Any]]
"""A line of a log: its optimiser step and the object on it."""


def read_about(path: Path, kind: str) -> dict[str, Any]:
    """Read ``run.json``.

    Args:
        path: the file.
        kind: of run that is expected, the command's name.

    Raises:
        StateError: it is absent, is not a JSON object, is of another version, or describes another kind of run.
    """
    fix = f"give the output directory of loralign {kind}"
    try:
        about = parse(read_text(path))
    except OSError as error:
        raise StateError("there is no run.json that can be read", place=str(path.parent), fix=fix) from error
    except ValueError as error:
        raise StateError(f"not valid JSON: {error}", place=str(path), fix=fix) from error
    if not isinstance(about, dict):
        raise StateError("not a JSON object", place=str(path), fix=fix)
    if about.get("version") != RUN_VERSION:
        raise StateError(
            f"version {about.get('version')!r} is unknown, only {RUN_VERSION} can be read",
            place=str(path),
            fix="use the loralign release that wrote it",
        )
    if about.get("kind", ALIGN) != kind:
        raise StateError(f"a run of kind {about.get('kind', ALIGN)!r:.40}, not {kind!r}", place=str(path), fix=fix)
    return about


def read_optional(path: Path, what: str, notes: list[str]) -> Any:
    """Read a JSON file that may be absent or damaged, which ``notes`` then says; ``None`` in that case."""
    try:
        return parse(read_text(path))
    except FileNotFoundError:
        notes.append(f"The run wrote no {path.name}, so the page has no {what}.")
    except (OSError, ValueError) as error:
        # An operating system's error names the whole path, and the page may be published.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        notes.append(
            f"{path.name} cannot be read ({clean_text(reason or 'no reason given')}), so the page has no {what}."
        )
    return None


def read_log(
    path: Path, kinds: Collection[str], what: str, notes: list[str], *, several: Collection[str] = ()
) -> dict[str, list[Record]]:
    """Read a log of one JSON object a line, each with a ``kind`` and a ``step``.

    Lines that cannot be read (a killed run leaves half a last line) are left out and counted in ``notes``.

    Args:
        path: the file.
        kinds: of records to keep, others are passed over.
        what: is not known without the file, for the note.
        notes: gets a sentence for whatever is missing.
        several: kinds of which one step may have more than one record.

    Returns:
        The records by kind, steps ascending; every kind is there.
    """
    records: dict[str, list[Record]] = {kind: [] for kind in kinds}
    lines: list[str] = []
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        notes.append(f"The run wrote no {path.name}, so nothing is known of {what}.")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}), so nothing is known of {what}.")
    last = max((index for index, line in enumerate(lines) if line.strip()), default=-1)
    unreadable = 0
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = mapping(parse(line))
        except ValueError:
            if index == last:
                notes.append(f"The last line of {path.name} is cut off (the run was stopped while writing it).")
            else:
                unreadable += 1
            continue
        kind, step = str(record.get("kind")), number(record.get("step"))
        if kind in records and step is not None:
            _add(records[kind], (int(step), record), several=kind in several)
    if unreadable:
        notes.append(f"{unreadable} lines of {path.name} cannot be read and are left out.")
    return records


def _add(kept: list[Record], new: Record, *, several: bool) -> None:
    """Append a record; a resumed run starts again at its checkpoint, so what was logged beyond that is void."""
    while kept and (kept[-1][0] > new[0] or (kept[-1][0] == new[0] and not several)):
        kept.pop()
    if not several or new not in kept:
        kept.append(new)


def read_metric(value: Any) -> Metric | None:
    """Return a score written as ``{"value", "low", "high"}`` or as a plain number, ``None`` for anything else."""
    if isinstance(value, dict) and "value" in value:
        return Metric(number(value["value"]), number(value.get("low")), number(value.get("high")))
    plain = number(value)
    return None if plain is None else Metric(plain)


def read_sample(item: Any) -> Sample:
    """Return a prompt with the answers to it."""
    fields = mapping(item)
    return Sample(*(str(fields.get(name) or "") for name in ("objective", "prompt", "before", "after")))
