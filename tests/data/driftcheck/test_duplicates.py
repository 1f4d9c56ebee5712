from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.data.driftcheck.candidate import Candidate
from loralign.data.driftcheck.duplicates import (
    CONTRADICTED,
    EXACT,
    NEAR,
    NEAR_DUPLICATE,
    SAME_CLUSTER,
    find_distinct,
)
from loralign.data.driftcheck.similarity import normalise, similar_pairs


def candidate(prompt: str, label: str = "safe", family: str | None = None) -> Candidate:
    return Candidate(prompt, label, "general" if label == "safe" else "hate", "test", "MIT", 0, family)


def alike(one: str, other: str) -> float:
    _, _, similarity = similar_pairs([normalise(one), normalise(other)], 1e-6)
    return float(similarity[0]) if len(similarity) else 0.0


LONG = "Which kinds of apples keep well over the winter in a cold and dry cellar"


def test_the_first_of_equal_prompts_stays() -> None:
    found = find_distinct([candidate("Where is it?"), candidate("Who knows?"), candidate("where  is it")])
    assert found.kept.tolist() == [0, 1]
    assert found.dropped == {2: EXACT}


def test_a_prompt_with_both_labels_goes_everywhere() -> None:
    given = [candidate("Where is it?"), candidate("where is it", "unsafe"), candidate("Where is it")]
    found = find_distinct(given)
    assert found.kept.tolist() == []
    assert set(found.dropped.values()) == {CONTRADICTED}


def test_a_near_duplicate_of_the_same_label_goes_and_one_of_the_other_shares_a_unit() -> None:
    assert alike(LONG, LONG + " now") >= NEAR_DUPLICATE
    found = find_distinct([candidate(LONG), candidate(LONG + " now"), candidate(LONG + " yes", "unsafe")])
    assert found.dropped == {1: NEAR}
    assert found.kept.tolist() == [0, 2]
    assert found.units[0] == found.units[1]


def test_what_resembles_only_a_dropped_prompt_stays() -> None:
    chain = [LONG, LONG + " or in a barn", LONG + " or in a barn or loft"]
    assert alike(chain[0], chain[1]) >= NEAR_DUPLICATE
    assert alike(chain[1], chain[2]) >= NEAR_DUPLICATE
    assert alike(chain[0], chain[2]) < NEAR_DUPLICATE
    found = find_distinct([candidate(prompt) for prompt in chain])
    assert found.kept.tolist() == [0, 2]


def test_units_are_clusters_joined_by_templates() -> None:
    given = [
        candidate("How deep is the sea?", family="deep"),
        candidate(LONG),
        candidate("Why do owls sleep all day?", family="deep"),
        candidate(LONG + " or upstairs in the old barn"),
        candidate("Sing me a song about boats.", family="song"),
    ]
    assert SAME_CLUSTER <= alike(LONG, given[3].prompt) < NEAR_DUPLICATE
    deep, apples, owls, barn, song = find_distinct(given).units.tolist()
    assert deep == owls
    assert apples == barn
    assert len({deep, apples, song}) == 3


TEXTS = st.lists(
    st.lists(st.sampled_from(["one", "two", "three red", "four green", "five"]), min_size=1, max_size=7).map(" ".join),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.lists(st.sampled_from(["safe", "unsafe"]), min_size=12, max_size=12))
def test_nothing_alike_is_left_or_told_apart(texts: list[str], labels: list[str]) -> None:
    given = [candidate(text, label) for text, label in zip(texts, labels, strict=False)]
    found = find_distinct(given)
    assert sorted([*found.kept.tolist(), *found.dropped]) == list(range(len(given)))
    rows = list(zip(found.kept.tolist(), found.units.tolist(), strict=True))
    for (one, unit), (other, another) in itertools.combinations(rows, 2):
        similarity = alike(given[one].prompt, given[other].prompt)
        if similarity >= SAME_CLUSTER:
            assert unit == another
        if given[one].label == given[other].label:
            assert similarity < NEAR_DUPLICATE
