from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.data.alignment import CATEGORIES
from loralign.data.driftcheck.candidate import Candidate
from loralign.data.driftcheck.prompt import PARTS, SAFE_CATEGORIES
from loralign.data.driftcheck.selection import category_counts, check_shares, part_counts, select
from loralign.errors import DataError

SHARES = {"train": 0.5, "probe": 0.1, "test": 0.4}


def test_unsafe_prompts_are_spread_evenly() -> None:
    counts = category_counts("unsafe", 5000, dict.fromkeys(CATEGORIES, 1000))
    assert list(counts.values()) == [834, 834, 833, 833, 833, 833]
    assert sum(category_counts("unsafe", 3, dict.fromkeys(CATEGORIES, 1)).values()) == 3


def test_too_few_of_one_category_is_said_with_what_there_is() -> None:
    supply = {**dict.fromkeys(CATEGORIES, 100), "hate": 7}
    with pytest.raises(DataError) as caught:
        category_counts("unsafe", 60, supply)
    assert "need 10 of each category" in caught.value.problem
    assert "hate 7, illegal activity 100" in caught.value.problem
    assert caught.value.fix is not None
    assert "at most 42" in caught.value.fix
    assert sum(category_counts("unsafe", 42, supply).values()) == 42


def test_half_of_the_safe_prompts_are_general() -> None:
    counts = category_counts("safe", 1200, dict.fromkeys(SAFE_CATEGORIES, 1000))
    assert counts["general"] == 600
    assert {counts[category] for category in CATEGORIES} == {100}


def test_other_safe_prompts_make_up_for_those_that_are_missing() -> None:
    assert category_counts("safe", 50, {"general": 60})["general"] == 50
    few = category_counts("safe", 50, {"general": 45, "hate": 2, "privacy": 9})
    assert {category: count for category, count in few.items() if count} == {"general": 42, "hate": 2, "privacy": 6}
    with pytest.raises(DataError, match="50 safe prompts are asked for, but there are 49"):
        category_counts("safe", 50, {"general": 49})


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 400),
    st.fixed_dictionaries({category: st.integers(0, 90) for category in SAFE_CATEGORIES}),
)
def test_safe_counts_add_up_within_the_supply(size: int, supply: dict[str, int]) -> None:
    size = min(size, sum(supply.values()))
    counts = category_counts("safe", size, supply)
    assert sum(counts.values()) == size
    assert all(0 <= counts[category] <= supply[category] for category in SAFE_CATEGORIES)


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(st.sampled_from(SAFE_CATEGORIES), st.integers(0, 300)),
    st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any),
)
def test_parts_get_their_shares_of_every_category_and_of_all(counts: dict[str, int], weights: list[int]) -> None:
    shares = {part: weight / sum(weights) for part, weight in zip(PARTS, weights, strict=True)}
    quotas = part_counts(counts, shares)
    for category, count in counts.items():
        assert sum(quotas[category, part] for part in PARTS) == count
        assert all(abs(quotas[category, part] - count * shares[part]) < 1 + 1e-6 for part in PARTS)
    for part in PARTS:
        total = sum(quotas[category, part] for category in counts)
        assert abs(total - sum(counts.values()) * shares[part]) < 2


def test_the_default_parts_of_five_thousand() -> None:
    quotas = part_counts(category_counts("unsafe", 5000, dict.fromkeys(CATEGORIES, 1000)), SHARES)
    totals = Counter[str]()
    for (_, part), count in quotas.items():
        totals[part] += count
    assert dict(totals) == {"train": 2500, "probe": 500, "test": 2000}


def candidates(*sizes: int) -> tuple[list[Candidate], list[int]]:
    """Safe general prompts in units of these sizes."""
    units = [unit for unit, size in enumerate(sizes) for _ in range(size)]
    made = [Candidate(f"question {number}", "safe", "general", "test", "MIT", 0) for number in range(len(units))]
    return made, units


def quotas(**counts: int) -> dict[tuple[tuple[str, str], str], int]:
    return {(("safe", "general"), part): count for part, count in counts.items()}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 6), min_size=8, max_size=30), st.integers(0, 3))
def test_no_unit_is_split_and_every_part_is_filled(sizes: list[int], seed: int) -> None:
    rows, units = candidates(*sizes)
    room = max(0, len(rows) - 3 * max(sizes))
    wanted = quotas(train=room // 2, probe=room // 10, test=room // 3)
    chosen = select(rows, units, wanted, seed)
    assert Counter(chosen.values()) == Counter({part: count for (_, part), count in wanted.items() if count > 0})
    assert len({(units[index], part) for index, part in chosen.items()}) == len({units[index] for index in chosen})


def test_units_take_turns() -> None:
    rows, units = candidates(20, 20, 20, 20, 2)
    chosen = select(rows, units, quotas(train=12), 0)
    assert sorted(Counter(units[index] for index in chosen).values()) == [2, 2, 2, 3, 3]


def test_units_of_one_fill_parts_to_the_last_prompt() -> None:
    rows, units = candidates(*[1] * 30)
    assert Counter(select(rows, units, quotas(train=15, probe=3, test=12), 5).values()) == {
        "train": 15,
        "probe": 3,
        "test": 12,
    }


def test_the_seed_decides_and_decides_alone() -> None:
    rows, units = candidates(*[3] * 20)
    wanted = quotas(train=20, test=20)
    assert select(rows, units, wanted, 1) == select(rows, units, wanted, 1)
    assert select(rows, units, wanted, 1) != select(rows, units, wanted, 2)
    # The order in which sources were read makes no difference.
    turned = select(rows[::-1], units[::-1], wanted, 1)
    assert {rows[::-1][index].prompt for index in turned} == {rows[i].prompt for i in select(rows, units, wanted, 1)}


def test_a_unit_too_large_to_fill_two_parts() -> None:
    rows, units = candidates(20)
    with pytest.raises(DataError, match="8 safe general prompts are wanted for test, but only 0 are left"):
        select(rows, units, quotas(train=10, test=8), 0)


def test_a_unit_of_several_categories_stays_in_one_part() -> None:
    mixed = [
        Candidate(f"{category} {number}", "safe", category, "test", "MIT", 0)
        for number in range(10)
        for category in ("general", "hate")
    ]
    units = [index // 4 for index in range(20)]
    wanted = {(("safe", category), part): 4 for category in ("general", "hate") for part in ("train", "test")}
    chosen = select(mixed, units, wanted, 0)
    assert len(chosen) == 16
    assert len({(units[index], part) for index, part in chosen.items()}) == len({units[index] for index in chosen})


@pytest.mark.parametrize(
    ("shares", "problem"),
    [
        ({"train": 0.5, "test": 0.4}, "add up to 0.9"),
        ({"train": 1.5, "test": -0.5}, "-0.5"),
        ({"training": 1.0}, "no part 'training'"),
        ({"train": float("nan")}, "nan"),
        ({}, "add up to 0"),
    ],
)
def test_impossible_shares(shares: dict[str, float], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        check_shares(shares, PARTS)


def test_shares_in_the_usual_order_without_empty_parts() -> None:
    assert list(check_shares({"test": 0.25, "probe": 0.0, "train": 0.75}, PARTS).items()) == [
        ("train", 0.75),
        ("test", 0.25),
    ]
