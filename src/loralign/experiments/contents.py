"""What a setting's value names on this machine, known by its content."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

_BLOCK = 2**20


def contents_digest(place: str) -> str | None:
    """SHA-256 of the file, of all files of the directory, or of all files that the pattern matches.

    ``NAME=PLACE`` counts as its place where nothing is called by the whole. A file that has not changed since is not
    read again.

    Args:
        place: a setting's value, which may be no place at all.

    Returns:
        Hexadecimal, or ``None`` where nothing on this machine is called that: a hub name, a word such as ``builtin``.
    """
    for candidate in (place, place.partition("=")[2]):
        files = _files(candidate)
        if files:
            total = hashlib.sha256()
            for name, path in files:
                status = path.stat()
                total.update(f"{name}\0{_file_digest(str(path), status.st_mtime_ns, status.st_size)}\n".encode())
            return total.hexdigest()
    return None


def known_by_content(value: Any) -> Any:
    """A setting's value with the digest of its content in place of the name of whatever is on this machine.

    Args:
        value: a plain value, or a list of such.
    """
    if isinstance(value, list | tuple):
        return [known_by_content(one) for one in value]
    if not isinstance(value, str):
        return value
    digest = contents_digest(value)
    if digest is None:
        return value
    # NAME=PLACE: the name stays.
    name = value.partition("=")[0] if "=" in value and not Path(value).exists() else ""
    return f"{name}=sha256:{digest}"


def identity_digest(identity: Mapping[str, Any], default: Callable[[Any], str] | None = None) -> str:
    """SHA-256 of an identity, hexadecimal; the order of its names does not matter.

    Args:
        identity: of JSON values.
        default: says anything else as text.

    Raises:
        TypeError: a value is not of JSON and ``default`` is not given.
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=default)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(place: str) -> list[tuple[str, Path]]:
    """Files by a name that does not say where they lie."""
    if not place:
        return []
    path = Path(place).expanduser()
    try:
        if path.is_file():
            return [("", path)]
        if path.is_dir():
            found = [one for one in path.rglob("*") if one.is_file()]
            return sorted((one.relative_to(path).as_posix(), one) for one in found)
    except OSError:
        # Longer than a path can be: no place.
        return []
    if glob.has_magic(place):
        matched = [Path(one) for one in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - an absolute pattern
        return sorted((one.name, one) for one in matched if one.is_file())
    return []


@lru_cache(maxsize=4096)
def _file_digest(path: str, modified: int, size: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
