"""Building a DRIFTCHECK set: read, drop duplicates, balance, divide into parts, write."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loralign import __version__
from loralign.data.driftcheck.candidate import Candidate
from loralign.data.driftcheck.duplicates import EXACT, NEAR, NEAR_DUPLICATE, SAME_CLUSTER, Distinct, find_distinct
from loralign.data.driftcheck.origins import Origin, read_origins
from loralign.data.driftcheck.prompt import PARTS, DriftPrompt, DriftSet, prompt_id
from loralign.data.driftcheck.selection import Stratum, category_counts, check_shares, part_counts, select
from loralign.data.driftcheck.storage import check_free, save_driftcheck
from loralign.errors import DataError

DEFAULT_PARTS = {"train": 0.5, "probe": 0.1, "test": 0.4}
NOT_NEEDED = "not needed"


def build_driftcheck(
    sources: Sequence[str] | str,
    output: str | os.PathLike[str],
    *,
    safe: int = 5000,
    unsafe: int = 5000,
    seed: int = 0,
    parts: Mapping[str, float] = DEFAULT_PARTS,
) -> DriftSet:
    """Build a set and write it.

    Exact duplicates and near-duplicates are dropped, unsafe prompts are balanced over six categories, and prompts that
    are much alike or made of one template are in one part. Equal sources, sizes, parts and seed give equal files.

    Args:
        sources: see :func:`loralign.data.driftcheck.origins.read_origins`.
        output: the new directory.
        safe: number of safe prompts.
        unsafe: number of unsafe prompts.
        seed: of the choice among prompts, and of their parts.
        parts: share of ``train``, ``probe`` and ``test``; they add up to 1.

    Returns:
        The set, its prompts in the order of their texts' digests, so that any first few are a mixture.

    Raises:
        DataError: a source cannot be used, or does not hold enough prompts.
        OutputError: the directory exists or cannot be written.
    """
    directory, sizes = Path(output), {"unsafe": unsafe, "safe": safe}
    if min(sizes.values()) < 0 or not any(sizes.values()):
        raise DataError(f"{unsafe} unsafe and {safe} safe prompts", place="sizes", fix="ask for at least one")
    if seed < 0:
        raise DataError(f"a seed of {seed}", place="seed", fix="use 0 or more")
    shares = check_shares(parts, PARTS)
    check_free(directory)
    candidates, origins = read_origins(sources)
    distinct = find_distinct(candidates)
    rest = [candidates[index] for index in distinct.kept.tolist()]
    chosen = select(rest, distinct.units.tolist(), _quotas(rest, sizes, shares), seed)
    prompts = sorted((_prompt(rest[index], part) for index, part in chosen.items()), key=_mixed)
    built = DriftSet.of(prompts)
    document = {
        "version": __version__,
        "seed": seed,
        "sizes": {**sizes, "parts": shares},
        "similarity": {"near_duplicate": NEAR_DUPLICATE, "same_part": SAME_CLUSTER},
        "duplicates": {name: list(distinct.dropped.values()).count(name) for name in (EXACT, NEAR)},
        "sources": _report(candidates, origins, distinct, {int(distinct.kept[index]) for index in chosen}),
        "counts": _counts(prompts),
    }
    save_driftcheck(built, document, directory)
    return built


def _quotas(
    rest: Sequence[Candidate], sizes: Mapping[str, int], shares: Mapping[str, float]
) -> dict[tuple[Stratum, str], int]:
    """How many prompts of each label and category each part gets."""
    quotas = {}
    for label, size in sizes.items():
        supply = Counter(candidate.category for candidate in rest if candidate.label == label)
        wanted = category_counts(label, size, supply)
        for (category, part), count in part_counts(wanted, shares).items():
            quotas[(label, category), part] = count
    return quotas


def _prompt(candidate: Candidate, part: str) -> DriftPrompt:
    return DriftPrompt(
        prompt_id(candidate.label, candidate.prompt),
        candidate.prompt,
        candidate.label,
        candidate.category,
        candidate.source,
        candidate.licence,
        part,
    )


def _mixed(prompt: DriftPrompt) -> tuple[str, str]:
    """The digest in the prompt's id before its label."""
    label, _, digest = prompt.id.partition("-")
    return digest, label


def _report(
    candidates: Sequence[Candidate], origins: Sequence[Origin], distinct: Distinct, chosen: set[int]
) -> list[dict[str, Any]]:
    """For each source: licences, and rows read = kept + dropped for each reason."""
    kept, licences = Counter[int](), [set[str]() for _ in origins]
    dropped = [Counter(origin.dropped) for origin in origins]
    for index, candidate in enumerate(candidates):
        if index in chosen:
            kept[candidate.origin] += 1
            licences[candidate.origin].add(candidate.licence)
        else:
            dropped[candidate.origin][distinct.dropped.get(index, NOT_NEEDED)] += 1
    return [
        {
            "source": origin.source,
            "licences": sorted(licences[number]),
            "read": origin.read,
            "kept": kept[number],
            "dropped": dict(sorted(dropped[number].items())),
        }
        for number, origin in enumerate(origins)
    ]


def _counts(prompts: Sequence[DriftPrompt]) -> dict[str, dict[str, dict[str, int]]]:
    """Prompts by label, category and part."""
    found = Counter((prompt.label, prompt.category, prompt.part) for prompt in prompts)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for label, category, part in sorted(found, key=lambda key: (key[0], key[1], PARTS.index(key[2]))):
        counts.setdefault(label, {}).setdefault(category, {})[part] = found[label, category, part]
    return counts
