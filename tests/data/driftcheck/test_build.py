from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loralign.data.alignment import CATEGORIES
from loralign.data.driftcheck import DriftPrompt, DriftSet, build_driftcheck, load_build_report, load_driftcheck
from loralign.data.driftcheck.duplicates import SAME_CLUSTER
from loralign.data.driftcheck.prompt import PARTS, prompt_id
from loralign.data.driftcheck.similarity import normalise, similar_pairs
from loralign.data.driftcheck.templates import builtin_candidates
from loralign.errors import DataError, LoralignError, OutputError

Write = Callable[..., str]
NOUNS = ("lanterns", "orchards", "pianos", "glaciers", "saddles", "volcanoes", "umbrellas", "quarries", "engines")
VERBS = ("admire", "paint", "describe", "inherit", "measure", "forget", "photograph", "exchange", "weigh", "insure")


def rows(per_category: int = 6) -> Iterator[dict[str, str]]:
    """Distinct harmless sentences that stand in for prompts of every category."""
    words = ((noun, verb) for noun in NOUNS for verb in VERBS)
    for number, (noun, verb) in zip(range(6 * per_category), words, strict=False):
        yield {"prompt": f"{verb} {noun}", "label": "unsafe", "category": CATEGORIES[number % 6]}
    for number, (noun, verb) in zip(range(6 * per_category), words, strict=False):
        yield {"prompt": f"may I {verb} {noun} {number}", "label": "safe"}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("driftcheck") / "set"
    build_driftcheck("builtin", directory)
    return directory


def test_the_bundled_set_has_ten_thousand_balanced_prompts(whole: Path) -> None:
    built = load_driftcheck(whole)
    assert Counter(prompt.label for prompt in built.prompts) == {"safe": 5000, "unsafe": 5000}
    unsafe = Counter(prompt.category for prompt in built.prompts if prompt.label == "unsafe")
    assert unsafe.keys() == set(CATEGORIES)
    assert set(unsafe.values()) == {833, 834}
    safe = Counter(prompt.category for prompt in built.prompts if prompt.label == "safe")
    assert 2500 <= safe["general"] <= 2510
    assert {safe[category] for category in CATEGORIES} <= {415, 416, 417}
    for label in ("safe", "unsafe"):
        parts = Counter(prompt.part for prompt in built.prompts if prompt.label == label)
        assert all(abs(parts[part] - size) <= 2 for part, size in zip(PARTS, (2500, 500, 2000), strict=True))
    assert len({prompt.id for prompt in built.prompts}) == len({prompt.prompt for prompt in built.prompts}) == 10000


def test_parts_share_no_template_and_no_near_duplicates(whole: Path) -> None:
    built = load_driftcheck(whole)
    families = {candidate.prompt: candidate.family for candidate in builtin_candidates(0)}
    found = {(families[prompt.prompt], prompt.part) for prompt in built.prompts}
    assert len(found) == len({family for family, _ in found})
    first, second, _ = similar_pairs([normalise(prompt.prompt) for prompt in built.prompts], SAME_CLUSTER)
    parts = [prompt.part for prompt in built.prompts]
    assert [pair for pair in zip(first, second, strict=True) if parts[pair[0]] != parts[pair[1]]] == []
    assert len(first) > 10000
    # No part of a category hangs on a single template.
    templates = Counter((prompt.label, prompt.category, prompt.part) for prompt in built.prompts)
    kinds = {key: set[str | None]() for key in templates}
    for prompt in built.prompts:
        kinds[prompt.label, prompt.category, prompt.part].add(families[prompt.prompt])
    assert all(len(templates_used) >= 2 for templates_used in kinds.values())


def test_a_seed_gives_the_same_files_in_any_process(whole: Path, tmp_path: Path) -> None:
    code = "import sys; from loralign.data.driftcheck import build_driftcheck; build_driftcheck('builtin', sys.argv[1])"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], env=environment, check=True)
    for name in ("prompts.jsonl", "build.json"):
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes()


def test_another_seed_gives_another_set(write: Write, tmp_path: Path) -> None:
    path = write(*rows())
    sets = [build_driftcheck(path, tmp_path / str(seed), safe=12, unsafe=12, seed=seed) for seed in (0, 1)]
    assert sets[0].fingerprint != sets[1].fingerprint
    assert sets[0] == load_driftcheck(tmp_path / "0")


def test_the_first_prompts_are_a_mixture(whole: Path) -> None:
    first = load_driftcheck(whole).prompts[:200]
    assert {prompt.label for prompt in first} == {"safe", "unsafe"}
    assert 70 <= sum(prompt.label == "safe" for prompt in first) <= 130
    assert {prompt.part for prompt in first} == set(PARTS)


def test_the_report_accounts_for_every_row(write: Write, tmp_path: Path) -> None:
    mine = write(
        *rows(),
        {"prompt": "Admire LANTERNS!", "label": "unsafe", "category": "hate"},
        {"prompt": "no such thing", "label": "unsafe"},
        {"prompt": ""},
    )
    other = write({"prompt": "paint lanterns", "label": "safe"}, name="other.jsonl")
    built = build_driftcheck([mine, other], tmp_path / "set", safe=20, unsafe=18, seed=3, parts={"test": 1.0})
    report = load_build_report(tmp_path / "set")
    assert report["fingerprint"] == built.fingerprint
    assert report["seed"] == 3
    assert report["sizes"] == {"safe": 20, "unsafe": 18, "parts": {"test": 1.0}}
    assert report["duplicates"] == {"exact duplicate": 1, "near-duplicate": 0}
    # Of 36 unsafe rows one came twice and one with the other label; two more had no category or no text.
    assert report["sources"] == [
        {
            "source": mine,
            "licences": ["unknown"],
            "read": 75,
            "kept": 38,
            "dropped": {
                "empty": 1,
                "exact duplicate": 1,
                "has the other label elsewhere": 1,
                "no category fits": 1,
                "not needed": 33,
            },
        },
        {"source": other, "licences": [], "read": 1, "kept": 0, "dropped": {"has the other label elsewhere": 1}},
    ]
    assert sum(report["counts"]["unsafe"][category]["test"] for category in CATEGORIES) == 18
    assert report["counts"]["safe"] == {"general": {"test": 20}}


def test_the_fingerprint_is_that_of_the_file(whole: Path) -> None:
    content = (whole / "prompts.jsonl").read_bytes()
    assert load_driftcheck(whole).fingerprint == hashlib.sha256(content).hexdigest()


def test_a_part_is_a_set_of_its_own(whole: Path) -> None:
    built = load_driftcheck(whole)
    parts = [built.part(name) for name in PARTS]
    assert sum(map(len, parts)) == len(built)
    assert len({part.fingerprint for part in parts}) == 3
    assert {prompt.part for prompt in parts[1].prompts} == {"probe"}
    with pytest.raises(DataError, match="no part 'validation'"):
        built.part("validation")
    with pytest.raises(DataError, match="'test' holds no prompts"):
        parts[0].part("test")


def test_an_id_is_that_of_label_and_text(whole: Path) -> None:
    assert prompt_id("safe", "What is a fjord?") == "safe-1d25631d0c77ef30"
    for prompt in load_driftcheck(whole).prompts[:50]:
        assert prompt.id == prompt_id(prompt.label, prompt.prompt)


def test_unusual_line_breaks_and_letters_survive(write: Write, tmp_path: Path) -> None:
    text = 'Über\u2028den\x85Fluss "и" \U0001f600\nund\tzurück?'
    built = build_driftcheck(write({"prompt": text, "label": "safe"}), tmp_path / "set", safe=1, unsafe=0)
    assert [prompt.prompt for prompt in load_driftcheck(tmp_path / "set").prompts] == [text]
    assert load_driftcheck(tmp_path / "set") == built


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"unsafe": 42, "safe": 0}, "42 unsafe prompts need 7 of each category"),
        ({"unsafe": 0, "safe": 37}, "37 safe prompts are asked for, but there are 36"),
        ({"unsafe": 0, "safe": 0}, "0 unsafe and 0 safe prompts"),
        ({"unsafe": -1}, "-1 unsafe"),
        ({"seed": -1}, "a seed of -1"),
        ({"parts": {"test": 0.5}}, "add up to 0.5"),
    ],
)
def test_what_cannot_be_built_leaves_nothing(
    write: Write, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    path, before = write(*rows()), set(tmp_path.iterdir())
    with pytest.raises(DataError, match=problem) as caught:
        build_driftcheck(path, tmp_path / "set", **{"safe": 6, "unsafe": 6, **options})
    assert caught.value.place
    assert caught.value.fix
    assert set(tmp_path.iterdir()) == before


def test_nothing_is_overwritten(write: Write, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        build_driftcheck("nowhere.jsonl", tmp_path / "set")


def test_a_failed_write_leaves_nothing(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = write(*rows()), set(tmp_path.iterdir())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loralign.data.driftcheck.storage.write_json", full)
    with pytest.raises(OutputError, match="No space left"):
        build_driftcheck(path, tmp_path / "set", safe=6, unsafe=6)
    assert set(tmp_path.iterdir()) == before


def damaged(directory: Path, lines: list[bytes] | None = None, **stated: Any) -> LoralignError:
    """What loading says once the lines or the record are others, with a fingerprint that fits the lines."""
    record = json.loads((directory / "build.json").read_text("utf-8"))
    if lines is not None:
        content = b"".join(line + b"\n" for line in lines)
        (directory / "prompts.jsonl").write_bytes(content)
        record["fingerprint"] = hashlib.sha256(content).hexdigest()
    (directory / "build.json").write_text(json.dumps({**record, **stated}), "utf-8")
    with pytest.raises(DataError) as caught:
        load_driftcheck(directory)
    assert caught.value.place
    assert caught.value.fix
    return caught.value


@pytest.fixture
def small(write: Write, tmp_path: Path) -> Path:
    build_driftcheck(write(*rows()), tmp_path / "small", safe=6, unsafe=6)
    return tmp_path / "small"


def test_altered_or_missing_files_are_noticed(small: Path, tmp_path: Path) -> None:
    path = small / "prompts.jsonl"
    whole = path.read_bytes()
    for content in (whole.replace(b"may I", b"may he"), whole[:-20], whole + b"\n", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="altered or cut off"):
            load_driftcheck(small)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_driftcheck(small)
    with pytest.raises(DataError, match="no DRIFTCHECK set is here"):
        load_driftcheck(tmp_path)
    (small / "build.json").write_text('{"format": ')
    with pytest.raises(DataError, match="not valid JSON"):
        load_driftcheck(small)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": "harmless"}, "unknown label 'harmless'"),
        ({"category": "spam"}, "unknown category 'spam'"),
        ({"label": "unsafe", "category": "general"}, "unknown category 'general'"),
        ({"part": "dev"}, "unknown part 'dev'"),
        ({"prompt": " "}, "prompt is ' ', not text"),
        ({"id": 3}, "id is 3, not text"),
        ({"more": "x"}, "not an object with id, prompt"),
    ],
)
def test_a_bad_line_is_named(small: Path, change: dict[str, Any], problem: str) -> None:
    lines = (small / "prompts.jsonl").read_bytes().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), **change}).encode()
    error = damaged(small, lines)
    assert problem in error.problem
    assert str(error.place).endswith("prompts.jsonl:4")


def test_other_damage_is_named(small: Path) -> None:
    lines = (small / "prompts.jsonl").read_bytes().splitlines()
    assert "is that of line 1 too" in damaged(small, [*lines, lines[0]]).problem
    assert "not valid JSON" in damaged(small, [*lines, b"{"]).problem
    assert "not an object" in damaged(small, [*lines, b"[]"]).problem
    assert "holds no prompts" in damaged(small, []).problem
    assert "format version 2, this loralign reads 1" in damaged(small, lines, format_version=2).problem
    assert "not the record" in damaged(small, lines, format="loralign.subspace").problem


def test_the_fingerprint_depends_on_everything_in_a_prompt() -> None:
    prompt = DriftPrompt("safe-1", "Why?", "safe", "general", "mine", "MIT", "test")
    fields = ("id", "prompt", "label", "category", "source", "licence", "part")
    others = [replace(prompt, **{field: "other"}) for field in fields]
    assert len({DriftSet.of([one]).fingerprint for one in (prompt, *others)}) == 8
    assert DriftSet.of([prompt, others[0]]).fingerprint != DriftSet.of([others[0], prompt]).fingerprint
