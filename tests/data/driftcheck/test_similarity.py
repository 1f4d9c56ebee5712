from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.data.driftcheck.similarity import SHINGLE_WIDTH, normalise, shingle_matrix, similar_pairs

WORDS = st.sampled_from(["a", "b", "cat", "dog", "the dog ran", "the cat ran", "é", "中文"])
TEXTS = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=14)


def shingles(text: str) -> set[str]:
    framed = f" {text} ".ljust(SHINGLE_WIDTH, "\0")
    return {framed[start : start + SHINGLE_WIDTH] for start in range(len(framed) - SHINGLE_WIDTH + 1)}


def compared(texts: list[str], threshold: float) -> list[tuple[int, int, float]]:
    """All pairs, one by one, in the promised order."""
    found = []
    for second, first in itertools.product(range(len(texts)), repeat=2):
        one, other = shingles(texts[first]), shingles(texts[second])
        similarity = len(one & other) / len(one | other)
        if first < second and similarity >= threshold:
            found.append((first, second, similarity))
    return found


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.sampled_from([0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
def test_the_index_finds_what_comparing_every_pair_finds(texts: list[str], threshold: float) -> None:
    found = [part.tolist() for part in similar_pairs(texts, threshold)]
    assert list(zip(*found, strict=True)) == compared(texts, threshold)


def test_it_does_so_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{verb} the {thing} in {place}" for verb, thing, place in itertools.product(
        ("paint", "lift", "carry"), ("table", "old chair", "lamp"), ("March", "the evening", "haste"))]  # fmt: skip
    whole = [part.tolist() for part in similar_pairs(texts, 0.4)]
    monkeypatch.setattr("loralign.data.driftcheck.similarity._ROWS_AT_ONCE", 4)
    monkeypatch.setattr("loralign.data.driftcheck.similarity._PAIRS_AT_ONCE", 3)
    assert [part.tolist() for part in similar_pairs(texts, 0.4)] == whole
    assert list(zip(*whole, strict=True)) == compared(texts, 0.4)
    assert len(whole[0]) > 20


def test_a_row_holds_each_shingle_once_and_rare_shingles_come_first() -> None:
    texts = ["banana banana", "banana", "an apple", ""]
    matrix = shingle_matrix(texts)
    assert np.diff(matrix.indptr).tolist() == [len(shingles(text)) for text in texts]
    frequencies = np.asarray(matrix.sum(axis=0)).reshape(-1)
    assert (np.diff(frequencies) >= 0).all()
    assert matrix.max() == 1


def test_more_letters_than_fit_into_one_number() -> None:
    wide = "".join(chr(0x4E00 + number) for number in range(7000))
    texts = [wide, wide[:3500], wide[3500:]]
    assert np.diff(shingle_matrix(texts).indptr).tolist() == [len(shingles(text)) for text in texts]
    first, second, similarity = similar_pairs(texts, 0.4)
    assert list(zip(first.tolist(), second.tolist(), similarity.tolist(), strict=True)) == compared(texts, 0.4)


@pytest.mark.parametrize("texts", [[], ["alone"]])
def test_nothing_to_compare(texts: list[str]) -> None:
    assert [len(part) for part in similar_pairs(texts, 0.5)] == [0, 0, 0]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_an_impossible_threshold(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        similar_pairs(["a", "b"], threshold)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I swim?", "how do i   SWIM"),
        ("Say “no” (twice).", 'say "no" twice'),
        ("ﬁne  weather", "fine weather"),
        ("STRASSE", "straße"),
    ],
)
def test_what_makes_no_difference_to_a_reader(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("x + y", "x - y"), ("?", "!"), ("2 < 3", "2 > 3"), ("", "?")])
def test_what_makes_a_difference(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)
