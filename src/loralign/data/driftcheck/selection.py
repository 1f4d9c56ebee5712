"""How many prompts of which category go into which part, and which they are."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from loralign.data.driftcheck.candidate import Candidate
from loralign.data.driftcheck.prompt import GENERAL, categories_of
from loralign.errors import DataError

Stratum = tuple[str, str]
"""Label and category."""


def category_counts(label: str, size: int, supply: Mapping[str, int]) -> dict[str, int]:
    """How many prompts of each category a set of ``size`` prompts of one label holds.

    Unsafe prompts are spread evenly over the six categories; the first ones get what does not divide. Of safe prompts
    half are general and half look like one of the six; what a category lacks the others make up for, since public sets
    of safe prompts are not labelled by the harm that they do not do.

    Args:
        label: ``unsafe`` or ``safe``.
        size: number of prompts.
        supply: prompts there are, by category.

    Raises:
        DataError: there are not enough, with how many there are.
    """
    categories = categories_of(label)
    there = {category: supply.get(category, 0) for category in categories}
    if label == "safe":
        if sum(there.values()) < size:
            raise DataError(
                f"{size} safe prompts are asked for, but there are {sum(there.values())}",
                place=label,
                fix=f"ask for at most {sum(there.values())}, or name more sources",
            )
        return _spread(size, there)
    wanted = {
        category: size // len(categories) + (number < size % len(categories))
        for number, category in enumerate(categories)
    }
    if any(there[category] < wanted[category] for category in categories):
        found = ", ".join(f"{category} {count}" for category, count in there.items())
        raise DataError(
            f"{size} unsafe prompts need {max(wanted.values())} of each category, but there are: {found}",
            place=label,
            fix=f"ask for at most {len(categories) * min(there.values())}, or name more sources",
        )
    return wanted


def part_counts(counts: Mapping[str, int], shares: Mapping[str, float]) -> dict[tuple[str, str], int]:
    """How many prompts of each category go into each part: within one of the exact share, the totals likewise.

    Args:
        counts: prompts by category.
        shares: share of each part; they add up to 1.

    Returns:
        Counts by category and part, which add up to ``counts`` over the parts.
    """
    quotas: dict[tuple[str, str], int] = {}
    total, given = 0, dict.fromkeys(shares, 0)
    for category, count in counts.items():
        total += count
        whole = {part: math.floor(count * share + 1e-9) for part, share in shares.items()}
        # The parts furthest behind their share of everything so far get what rounding down left over.
        behind = {part: total * share - given[part] - whole[part] for part, share in shares.items() if share > 0}
        left = count - sum(whole.values())
        for part in sorted(behind, key=lambda name: -behind[name])[:left]:
            whole[part] += 1
        for part, number in whole.items():
            quotas[category, part] = number
            given[part] += number
    return quotas


def select(
    candidates: Sequence[Candidate],
    units: Sequence[int],
    quotas: Mapping[tuple[Stratum, str], int],
    seed: int,
) -> dict[int, str]:
    """Choose prompts for the parts such that no unit has prompts in two of them.

    The largest units are assigned first, each to the part to which it can still give most. Within a part, units take
    turns, so that no template or cluster outweighs others more than it must.

    Args:
        candidates: what there is to choose from.
        units: the unit of each candidate.
        quotas: how many are wanted, by stratum and part.
        seed: of the order among equals.

    Returns:
        The part of every position chosen.

    Raises:
        DataError: units are so large that a part cannot be filled without splitting one.
    """
    # Digests, since no library promises that its random numbers stay what they are from version to version.
    order = sorted(range(len(candidates)), key=lambda index: _digest(seed, candidates[index]))
    members: dict[int, list[int]] = {}
    for index in order:
        members.setdefault(units[index], []).append(index)
    contents = {
        unit: Counter((candidates[index].label, candidates[index].category) for index in indices)
        for unit, indices in members.items()
    }
    parts = _assign(contents, quotas)
    chosen: dict[int, str] = {}
    for (stratum, part), wanted in quotas.items():
        groups = [
            [index for index in members[unit] if (candidates[index].label, candidates[index].category) == stratum]
            for unit, content in contents.items()
            if parts[unit] == part and stratum in content
        ]
        if sum(map(len, groups)) < wanted:
            raise DataError(
                f"{wanted} {' '.join(stratum)} prompts are wanted for {part}, but only {sum(map(len, groups))} are "
                "left: prompts that are much alike stay in one part",
                place="parts",
                fix="ask for fewer prompts or other parts, or name more sources",
            )
        chosen.update(dict.fromkeys(_in_turn(groups)[:wanted], part))
    return chosen


def _assign(contents: Mapping[int, Counter[Stratum]], quotas: Mapping[tuple[Stratum, str], int]) -> dict[int, str]:
    """The part of every unit."""
    lacking = dict(quotas)
    parts = list(dict.fromkeys(part for _, part in quotas))

    def gain(content: Counter[Stratum], part: str) -> tuple[int, int]:
        """What the unit gives of what the part lacks, and then how much the part lacks."""
        lacks = {stratum: lacking[stratum, part] for stratum in content}
        return sum(min(count, max(0, lacks[stratum])) for stratum, count in content.items()), sum(lacks.values())

    assigned = {}
    for unit, content in sorted(contents.items(), key=lambda item: -item[1].total()):
        best = max(parts, key=lambda part: gain(content, part))
        assigned[unit] = best
        for stratum, count in content.items():
            lacking[stratum, best] -= count
    return assigned


def _in_turn(groups: Sequence[Sequence[int]]) -> list[int]:
    """The first of every group, then the second of every group that has one, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[turn] for turn in range(longest) for group in groups if turn < len(group)]


def _digest(seed: int, candidate: Candidate) -> bytes:
    return hashlib.sha256(f"{seed}\n{candidate.label}\n{candidate.prompt}".encode()).digest()


def _spread(size: int, supply: Mapping[str, int]) -> dict[str, int]:
    """Fill categories by weight, six for the general one and one for each other, none beyond its supply."""
    counts = dict.fromkeys(supply, 0)
    while sum(counts.values()) < size:
        left = size - sum(counts.values())
        room = {name: supply[name] - counts[name] for name in supply if supply[name] > counts[name]}
        weights = {name: 6 if name == GENERAL else 1 for name in room}
        shares = {name: left * weight / sum(weights.values()) for name, weight in weights.items()}
        added = {name: min(room[name], math.floor(share + 1e-9)) for name, share in shares.items()}
        if not any(added.values()):
            for name in sorted(room, key=lambda name: -shares[name])[:left]:
                added[name] = 1
        for name, count in added.items():
            counts[name] += count
    return counts


def check_shares(shares: Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    """Shares of the parts that add up to 1, in the usual order of the parts.

    Raises:
        DataError: a part is unknown, a share is negative or not a number, or they do not add up to 1.
    """
    fix = "write shares that add up to 1, such as train=0.5,probe=0.1,test=0.4"
    for name, share in shares.items():
        if name not in known:
            raise DataError(f"no part {name!r}", place="parts", fix=f"use {', '.join(known)}")
        if not math.isfinite(share) or share < 0:
            raise DataError(f"the share {share} of {name}", place="parts", fix=fix)
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"the shares add up to {total:g}", place="parts", fix=fix)
    return {name: shares[name] / total for name in known if shares.get(name, 0) > 0}
