"""Answers of an unfinished run on the disk, so that an interrupted one goes on at the prompt where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from loralign.errors import DataError, OutputError, StateError
from loralign.evaluation.parquet import write_columns
from loralign.files import write_text

FORMAT = "loralign.responses"
FORMAT_VERSION = 1
_SECONDS_BETWEEN_FLUSHES = 1.0


class AskedPrompt(Protocol):
    """A labelled prompt, as DRIFTCHECK's sets have them."""

    @property
    def id(self) -> str:
        """Its name in the set."""

    @property
    def prompt(self) -> str:
        """What the user says."""

    @property
    def label(self) -> str:
        """``safe`` or ``unsafe``."""

    @property
    def category(self) -> str:
        """What it is about."""

    @property
    def part(self) -> str:
        """The part of the set that it belongs to."""


class ResponseStore:
    """A file of answers, one JSON object a line, that is only ever appended to.

    Its first line tells the format, a digest of the prompts' ids and texts and the settings that the answers depend
    on. Opening an existing file takes up its answers: a last line that was cut off is dropped, and a file of other
    prompts or settings is refused. Every answer is handed to the operating system at once, so that a killed process
    loses none, and to the disk every second.

    Args:
        path: the file; made with its directory if it is not there.
        prompts: all prompts of the run.
        settings: what the answers depend on, such as a responder's ``settings``, as plain values.

    Raises:
        DataError: there are no prompts, or one has no id or text of its own.
        StateError: the file is damaged, of another version, or of other prompts or settings.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], prompts: Sequence[AskedPrompt], settings: Mapping[str, Any]):
        self.path = Path(path)
        self.prompts = list(prompts)
        self._positions = _positions(self.prompts)
        self._answers: dict[int, str] = {}
        # As JSON gives them back, so that what was written compares equal.
        self._header = json.loads(
            json.dumps(
                {
                    "format": FORMAT,
                    "format_version": FORMAT_VERSION,
                    "prompts": prompts_digest(self.prompts),
                    "settings": dict(settings),
                }
            )
        )
        if self.path.exists():
            self._take_up()
        else:
            write_text(self.path, json.dumps(self._header) + "\n")
        self._file: IO[bytes] | None = None
        self._flushed = time.monotonic()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the prompts and settings: one word for what the answers depend on."""
        return hashlib.sha256(json.dumps(self._header, sort_keys=True).encode()).hexdigest()

    @property
    def pending(self) -> list[int]:
        """Indices of the prompts that have no answer yet."""
        return [index for index in range(len(self.prompts)) if index not in self._answers]

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self._answers)

    def keep(self, index: int, answer: str) -> None:
        """Append the answer to the prompt ``index``; halves of surrogate pairs become replacement characters.

        Raises:
            OutputError: the file system refused the write, as a full disk does.
        """
        text = answer.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        line = json.dumps({"id": self.prompts[index].id, "response": text}) + "\n"
        try:
            # Opened late, so that a store that is only read holds no file.
            self._file = self._file or self.path.open("ab")
            self._file.write(line.encode())
            self._file.flush()
            if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
                os.fsync(self._file.fileno())
                self._flushed = time.monotonic()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._answers[index] = text

    def responses(self) -> list[str]:
        """All answers, in the order of the prompts.

        Raises:
            StateError: some are missing.
        """
        missing = self.pending
        if missing:
            raise StateError(
                f"{len(missing)} of {len(self.prompts)} prompts have no answer yet",
                place=str(self.path),
                fix="repeat the run, which goes on where it stopped",
            )
        return [self._answers[index] for index in range(len(self.prompts))]

    def write_parquet(
        self, path: str | os.PathLike[str], columns: Mapping[str, Sequence[str | float]] | None = None
    ) -> None:
        """Write id, prompt, label, category, part and response of every prompt, and ``columns`` beside them.

        Args:
            path: the Parquet file, written whole or not at all.
            columns: further ones by name, such as ``refused`` and ``toxicity``, with a value for every prompt.

        Raises:
            StateError: answers are missing.
            DataError: a column has not one value for every prompt.
            OutputError: the file system refused the write.
        """
        asked = {
            name: [str(getattr(prompt, name)) for prompt in self.prompts]
            for name in ("id", "prompt", "label", "category", "part")
        }
        write_columns(path, {**asked, "response": self.responses(), **(columns or {})})

    def close(self) -> None:
        """Hand everything to the disk and close the file.

        Raises:
            OutputError: the file system refused the write.
        """
        file, self._file = self._file, None
        if file is None:
            return
        try:
            with file:
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def remove(self) -> None:
        """Close and remove the file, once what it holds is written elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_up(self) -> None:
        """Read the answers of an earlier run and cut off what it did not finish writing."""
        try:
            header, end, rest = self.path.read_bytes().partition(b"\n")
        except OSError as error:
            raise StateError(f"cannot be read: {error.strerror}", place=str(self.path)) from error
        _check_header(_parsed(header) if end else {}, self._header, str(self.path))
        whole = len(header) + 1
        *lines, torn = rest.split(b"\n")
        for number, line in enumerate(lines, start=2):
            record = _parsed(line)
            position = self._positions.get(str(record.get("id")))
            if position is None or not isinstance(record.get("response"), str):
                if not record and not torn and number == len(lines) + 1:
                    break
                raise StateError(
                    "the line is no answer to a prompt of this run",
                    place=f"{self.path}:{number}",
                    fix="remove the file to begin anew",
                )
            self._answers[position] = record["response"]
            whole += len(line) + 1
        try:
            os.truncate(self.path, whole)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def prompts_digest(prompts: Sequence[AskedPrompt]) -> str:
    """SHA-256 of the ids and texts of prompts in their order."""
    text = json.dumps([[prompt.id, prompt.prompt] for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()


def _positions(prompts: Sequence[AskedPrompt]) -> dict[str, int]:
    """Where each prompt stands, by its id."""
    if not prompts:
        raise DataError("there are no prompts", place="prompts", fix="give at least one")
    positions: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        place = f"prompt {index} ({prompt.id})"
        if not prompt.id or prompt.id in positions:
            raise DataError(f"the id {prompt.id!r} is empty or not the first", place=place, fix="give each its own")
        if not prompt.prompt.strip():
            raise DataError("the prompt is empty", place=place, fix="drop it")
        try:
            f"{prompt.id}{prompt.prompt}".encode()
        except UnicodeEncodeError as error:
            raise DataError("the text is no valid Unicode", place=place, fix="repair or drop it") from error
        positions[prompt.id] = index
    return positions


def _check_header(found: dict[str, Any], expected: dict[str, Any], place: str) -> None:
    again = "repeat the run that wrote it, or remove the file to begin anew"
    if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
        raise StateError(f"holds no answers of format version {FORMAT_VERSION}", place=place, fix="name another file")
    if found.get("prompts") != expected["prompts"]:
        raise StateError("holds answers to other prompts", place=place, fix=again)
    different = _difference(found.get("settings"), expected["settings"], "settings")
    if different:
        raise StateError(f"holds answers with {different}", place=place, fix=again)


def _difference(before: Any, now: Any, name: str) -> str | None:
    """The first setting that differs and both of its values, or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = (_difference(before.get(key), now.get(key), key) for key in dict.fromkeys([*now, *before]))
        return next((one for one in found if one), None)
    return None if before == now else f"{name} {before!r} and not {now!r}"


def _parsed(line: bytes) -> dict[str, Any]:
    """The object of a line, empty where it holds none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write: {error.strerror or error}", place=str(path), fix="free some space and repeat the run"
    )
