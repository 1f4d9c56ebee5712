"""Writing files so that a reader sees the old content or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from loralign.errors import OutputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it once the block has ended without an exception.

    The content is flushed to the disk before the rename, and the directory entry after it. On any exception the
    temporary file is removed and ``path`` keeps its old content.

    Raises:
        OutputError: the file system refused the write (full disk, missing permission).
    """
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        flush_directory(target.parent)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write: {getattr(error, 'strerror', None) or error}",
            place=str(path),
            fix="free some space or choose another place",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory beside ``path`` that becomes ``path`` once the block has ended without an exception.

    ``path`` itself must not exist when the block ends, so a directory is either absent or whole.

    Raises:
        OutputError: the file system refused the write, or ``path`` exists.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        temporary.rename(target)
        flush_directory(target.parent)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write: {getattr(error, 'strerror', None) or error}",
            place=str(path),
            fix="free some space or choose another place",
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Infinities and NaN are refused: JSON has no word for them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def flush_directory(directory: Path) -> None:
    """Make renames inside ``directory`` durable, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError | SafetensorError, path: str | os.PathLike[str]) -> OutputError:
    # safetensors wraps the operating system's refusal, so it would not be seen as one.
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return OutputError(f"cannot write: {reason}", place=str(path), fix="free some space or choose another place")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines, in characters that any reader takes."""
    return "".join(json.dumps(row) + "\n" for row in rows)


# pathlib raises on names that no file can have and on directories that cannot be read; of what a user typed, the answer
# is that nothing is there.


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether something is at a path; a leading ``~`` is the home directory."""
    return os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is at a path, likewise."""
    return os.path.isfile(os.path.expanduser(path))  # noqa: PTH111, PTH113


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is at a path, likewise."""
    return os.path.isdir(os.path.expanduser(path))  # noqa: PTH111, PTH112
