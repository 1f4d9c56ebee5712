"""A DRIFTCHECK set as a directory: ``prompts.jsonl``, and ``build.json`` which says how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from loralign.data.alignment import LABELS
from loralign.data.driftcheck.prompt import PARTS, DriftPrompt, DriftSet, categories_of, prompt_line
from loralign.errors import DataError, OutputError
from loralign.files import atomic_directory, write_json

PROMPTS_FILE = "prompts.jsonl"
BUILD_FILE = "build.json"
FORMAT = "loralign.driftcheck"
FORMAT_VERSION = 1
_AGAIN = "build the set again, or copy it again"
_COLUMNS = tuple(field.name for field in fields(DriftPrompt))


def save_driftcheck(chosen: DriftSet, document: Mapping[str, Any], directory: Path) -> None:
    """Write a set and how it was made into a new directory, whole or not at all.

    Args:
        chosen: the set.
        document: what ``build.json`` says beside format, version and fingerprint.
        directory: must not exist.

    Raises:
        OutputError: the directory exists or cannot be written.
    """
    check_free(directory)
    with atomic_directory(directory) as temporary:
        lines = "".join(prompt_line(prompt) for prompt in chosen.prompts)
        (temporary / PROMPTS_FILE).write_bytes(lines.encode("utf-8"))
        stated = {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": chosen.fingerprint}
        write_json(temporary / BUILD_FILE, {**stated, **document})


def check_free(directory: Path) -> None:
    """Make sure that a set can be written here.

    Raises:
        OutputError: something is there already.
    """
    if directory.exists() or directory.is_symlink():
        raise OutputError("exists already", place=str(directory), fix="choose another directory or remove it")


def load_driftcheck(directory: Path | str) -> DriftSet:
    """Load a set that ``loralign driftcheck build`` wrote.

    Raises:
        DataError: there is none, it is of another format version, or its files are damaged or were altered.
    """
    place = Path(directory)
    document = load_build_report(place)
    path = place / PROMPTS_FILE
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != document.get("fingerprint"):
        raise DataError("the file is not what was built: it was altered or cut off", place=str(path), fix=_AGAIN)
    # Not splitlines(): a prompt may hold one of the separators that only Unicode takes for a line break.
    lines = content.split(b"\n")[:-1]
    prompts = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    if not prompts:
        raise DataError("the set holds no prompts", place=str(path), fix=_AGAIN)
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts, start=1):
        if seen.setdefault(prompt.id, number) != number:
            raise DataError(
                f"the id {prompt.id!r} is that of line {seen[prompt.id]} too", place=f"{path}:{number}", fix=_AGAIN
            )
    return DriftSet(prompts, str(document["fingerprint"]))


def load_build_report(directory: Path | str) -> dict[str, Any]:
    """Load ``build.json``: seed, sizes, counts, and what was read from each source, kept and dropped.

    Raises:
        DataError: there is none, it is damaged, or it is of another format version.
    """
    path = Path(directory) / BUILD_FILE
    if not path.is_file():
        raise DataError(
            "no DRIFTCHECK set is here", place=str(directory), fix="make one with loralign driftcheck build -o DIR"
        )
    try:
        document = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", place=str(path), fix=_AGAIN) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError("not the record of a DRIFTCHECK set", place=str(path), fix=_AGAIN)
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"format version {version!r}, this loralign reads {FORMAT_VERSION}",
            place=str(path),
            fix="build the set again with this version",
        )
    return document


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=str(path), fix=_AGAIN) from error


def _parse(line: bytes, place: str) -> DriftPrompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", place=place, fix=_AGAIN) from error
    if not isinstance(row, dict) or sorted(row) != sorted(_COLUMNS):
        raise DataError(f"not an object with {', '.join(_COLUMNS)}", place=place, fix=_AGAIN)
    for column in _COLUMNS:
        if not isinstance(row[column], str) or not row[column].strip():
            raise DataError(f"{column} is {row[column]!r}, not text", place=place, fix=_AGAIN)
    prompt = DriftPrompt(**row)
    if prompt.label not in LABELS:
        raise DataError(f"unknown label {prompt.label!r}", place=place, fix=f"use {' or '.join(LABELS)}")
    for column, known in (("category", categories_of(prompt.label)), ("part", PARTS)):
        if row[column] not in known:
            raise DataError(f"unknown {column} {row[column]!r}", place=place, fix=f"use {', '.join(known)}")
    return prompt
