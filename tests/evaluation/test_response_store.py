from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loralign.errors import DataError, OutputError, StateError
from loralign.evaluation.responding import collect_responses
from loralign.evaluation.response_store import ResponseStore
from tests.evaluation.killed import SETTINGS, Capitals
from tests.evaluation.prompts import Asked, asked_prompts

PROMPTS = asked_prompts()
CAPITALS = [prompt.prompt.upper() for prompt in PROMPTS]


def opened(path: Path, prompts: Sequence[Asked] = PROMPTS, settings: Any = SETTINGS) -> ResponseStore:
    return ResponseStore(path, prompts, settings)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A file with the answers to the first four prompts."""
    path = tmp_path / "run" / "responses.jsonl"
    with opened(path) as store:
        for index in range(4):
            store.keep(index, CAPITALS[index])
    return path


def test_a_killed_run_goes_on_at_the_prompt_where_it_stopped(tmp_path: Path) -> None:
    path, reached = tmp_path / "responses.jsonl", tmp_path / "reached"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.evaluation.killed", str(path), str(reached)]
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not reached.exists():
            assert child.poll() is None, "the child ended early"
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = path.read_bytes()
    second = Capitals()
    with opened(path) as store:
        assert store.pending == [4, 5, 6, 7, 8]
        assert collect_responses(second, store) == CAPITALS
    assert second.asked == [prompt.prompt for prompt in PROMPTS[4:]]
    assert path.read_bytes().startswith(before)
    with opened(path) as store:
        assert collect_responses(Capitals(), store) == CAPITALS


def test_a_torn_line_is_dropped_wherever_it_was_torn(half: Path) -> None:
    whole = half.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = whole.rindex(lines[-1])
    for cut in range(start, len(whole)):
        half.write_bytes(whole[:cut])
        with opened(half) as store:
            assert store.pending == [3, 4, 5, 6, 7, 8]
            store.keep(3, CAPITALS[3])
        assert half.read_bytes() == whole
    half.write_bytes(whole + b"\0\0\0\n")
    with opened(half) as store:
        assert len(store) == 4
    assert half.read_bytes() == whole


def test_a_file_damaged_in_its_middle_is_refused(half: Path) -> None:
    lines = half.read_bytes().splitlines(keepends=True)
    for damaged in (b"{}\n", b"garbage\n", b'{"id": "p1"}\n', b'{"id": "other", "response": "x"}\n', b"\n"):
        half.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        before = half.read_bytes()
        with pytest.raises(StateError, match=r"responses.jsonl:3: the line is no answer .*remove the file"):
            opened(half)
        assert half.read_bytes() == before
    half.write_bytes(b"".join(lines) + b'{"id": "other", "response": "x"}\n')
    with pytest.raises(StateError, match=r"responses.jsonl:6"):
        opened(half)


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"[1]\n", b'{"format": "loralign.responses", "format_version": 2}\n', b'{"format"']
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(StateError, match="holds no answers of format version 1"):
        opened(path)
    assert path.read_bytes() == content


def test_other_settings_are_refused_by_name(half: Path) -> None:
    before = half.read_bytes()
    nested = {"model": {"name": "a", "weights": "1"}, "sizes": (1, 2)}
    with pytest.raises(StateError, match="max_new_tokens 4 and not 5"):
        opened(half, settings=SETTINGS | {"max_new_tokens": 5})
    with pytest.raises(StateError, match=r"temperature None and not 0.5"):
        opened(half, settings=SETTINGS | {"temperature": 0.5})
    with pytest.raises(StateError, match="max_new_tokens 4 and not None"):
        opened(half, settings={"model": "capitals"})
    assert half.read_bytes() == before
    path = half.with_name("nested.jsonl")
    opened(path, settings=nested).close()
    opened(path, settings=nested).close()
    with pytest.raises(StateError, match="weights '1' and not '2'"):
        opened(path, settings={"model": {"name": "a", "weights": "2"}, "sizes": (1, 2)})


def test_other_prompts_are_refused(half: Path) -> None:
    changed = [replace(PROMPTS[0], prompt="Another question"), *PROMPTS[1:]]
    renamed = [replace(PROMPTS[0], id="q0"), *PROMPTS[1:]]
    for prompts in (changed, renamed, PROMPTS[:-1], PROMPTS[::-1]):
        with pytest.raises(StateError, match="answers to other prompts"):
            opened(half, prompts)
    labelled = [replace(prompt, label="unsafe") for prompt in PROMPTS]
    with opened(half, labelled) as store:
        assert len(store) == 4


def test_the_fingerprint_is_of_prompts_and_settings(tmp_path: Path) -> None:
    first = opened(tmp_path / "a").fingerprint
    assert opened(tmp_path / "b").fingerprint == first
    assert opened(tmp_path / "c", settings={}).fingerprint != first
    assert opened(tmp_path / "d", PROMPTS[1:]).fingerprint != first


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts"),
        ([Asked("a", "x"), Asked("a", "y")], "prompt 1 .a.: the id 'a' is empty or not the first"),
        ([Asked("", "x")], "the id '' is empty"),
        ([Asked("a", " \n")], "the prompt is empty"),
        ([Asked("a", "\ud800")], "no valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(tmp_path: Path, prompts: list[Asked], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "responses.jsonl", prompts)
    assert list(tmp_path.iterdir()) == []


HOSTILE = [
    "<script>\n",
    "\u2028\x00\x85",
    "half \ud83d of a pair",
    "\ud83d\ude00",
    "x" * 1_000_000,
    "",
    '"\\',
    "\r",
    "é",
]


def test_hostile_answers_come_back_as_they_were_and_reach_parquet(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with opened(path) as store:
        for index in reversed(range(9)):
            store.keep(index, HOSTILE[index])
    expected = [*HOSTILE]
    expected[2:4] = ["half \ufffd of a pair", "😀"]
    with opened(path) as store:
        assert store.responses() == expected
        store.write_parquet(tmp_path / "responses.parquet", {"refused": [index / 8 for index in range(9)]})
        store.remove()
    table = pq.read_table(tmp_path / "responses.parquet")
    assert table.column_names == ["id", "prompt", "label", "category", "part", "response", "refused"]
    assert table["response"].to_pylist() == expected
    assert table["refused"].to_pylist() == [index / 8 for index in range(9)]
    for name in ("id", "prompt", "label", "category", "part"):
        assert table[name].to_pylist() == [getattr(prompt, name) for prompt in PROMPTS]
    assert [one.name for one in tmp_path.iterdir()] == ["responses.parquet"]


def test_parquet_is_written_whole_or_not_at_all(half: Path) -> None:
    target = half.with_name("responses.parquet")
    target.write_text("old")
    with opened(half) as store:
        with pytest.raises(StateError, match="5 of 9 prompts have no answer yet"):
            store.write_parquet(target)
        for index in store.pending:
            store.keep(index, "")
        with pytest.raises(DataError, match=r"differ in length: .*refused 8"):
            store.write_parquet(target, {"refused": [0.0] * 8})
        assert target.read_text() == "old"
        store.write_parquet(target)
    assert pq.read_table(target).num_rows == 9


def test_a_full_disk_is_one_line_and_the_answers_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    store = opened(path)
    store.keep(0, "first")
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    assert store._file is not None
    descriptor = store._file.fileno()
    kept = os.dup(descriptor)
    os.dup2(full.fileno(), descriptor)
    with pytest.raises(OutputError, match=r"responses.jsonl: cannot write: No space left on device"):
        store.keep(1, "second")
    assert store.pending[0] == 1
    os.dup2(kept, descriptor)
    store.close()
    os.close(kept)
    full.close()
    with opened(path) as again:
        assert again.pending[0] in (1, 2)


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        opened(tmp_path / "file" / "responses.jsonl")
    (tmp_path / "directory").mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        opened(tmp_path / "directory")


def test_a_responder_that_leaves_prompts_out_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Lazy:
        name = "lazy"

        def respond(self, prompts: Sequence[Any], keep: Any) -> None:
            keep(0, "only this one")

    path = tmp_path / "responses.jsonl"
    with opened(path) as store, pytest.raises(StateError, match="8 of 9 prompts have no answer"):
        collect_responses(Lazy(), store)
    with opened(path) as store, caplog.at_level(logging.INFO):
        assert collect_responses(Capitals(), store) == ["only this one", *CAPITALS[1:]]
    assert "1 of 9 prompts are answered already" in caplog.text


def test_every_line_is_an_object_with_an_id(half: Path) -> None:
    header, *lines = [json.loads(line) for line in half.read_text(encoding="ascii").splitlines()]
    assert header["settings"] == SETTINGS
    assert lines == [{"id": f"p{index}", "response": CAPITALS[index]} for index in range(4)]
