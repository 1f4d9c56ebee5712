"""Which prompts say the same, and which are so alike that they must not be told apart into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from loralign.data.driftcheck.candidate import Candidate
from loralign.data.driftcheck.similarity import Indices, normalise, similar_pairs

NEAR_DUPLICATE = 0.8
"""Shingle similarity from which the later of two prompts of one label is dropped."""
SAME_CLUSTER = 0.6
"""Shingle similarity from which two prompts belong to the same part, whatever their labels."""

EXACT, NEAR, CONTRADICTED = "exact duplicate", "near-duplicate", "has the other label elsewhere"


@dataclass(frozen=True)
class Distinct:
    """Prompts without their duplicates.

    Args:
        kept: positions of the candidates that stay, ascending.
        dropped: for every other position, why it goes.
        units: ``(kept,)`` int64, for every position kept the number of its unit. A unit is a connected component of
            near-duplicates at :data:`SAME_CLUSTER` and of prompts of one template: the least that may share a part.
    """

    kept: Indices
    dropped: dict[int, str]
    units: Indices


def find_distinct(candidates: Sequence[Candidate]) -> Distinct:
    """Drop duplicates, the first of which stays, and group the others into units.

    A prompt that occurs with both labels is dropped wherever it occurs.
    """
    texts = [normalise(candidate.prompt) for candidate in candidates]
    dropped = _exact(candidates, texts)
    rest = np.array([index for index in range(len(candidates)) if index not in dropped], dtype=np.int64)
    first, second, similarity = similar_pairs([texts[index] for index in rest], SAME_CLUSTER)
    gone = np.zeros(len(rest), dtype=bool)
    near = similarity >= NEAR_DUPLICATE
    # By ascending second index, so that the fate of the first is known.
    for one, other in zip(first[near].tolist(), second[near].tolist(), strict=True):
        if not gone[one] and candidates[rest[one]].label == candidates[rest[other]].label:
            gone[other] = True
    dropped.update(dict.fromkeys(rest[gone].tolist(), NEAR))
    stays = ~gone[first] & ~gone[second]
    numbers = np.cumsum(~gone) - 1
    kept = rest[~gone]
    units = _components(candidates, kept, numbers[first[stays]], numbers[second[stays]])
    return Distinct(kept, dropped, units)


def _exact(candidates: Sequence[Candidate], texts: Sequence[str]) -> dict[int, str]:
    labels: dict[str, set[str]] = {}
    for candidate, text in zip(candidates, texts, strict=True):
        labels.setdefault(text, set()).add(candidate.label)
    dropped, seen = dict[int, str](), set[str]()
    for index, text in enumerate(texts):
        if len(labels[text]) > 1:
            dropped[index] = CONTRADICTED
        elif text in seen:
            dropped[index] = EXACT
        seen.add(text)
    return dropped


def _components(candidates: Sequence[Candidate], kept: Indices, first: Indices, second: Indices) -> Indices:
    """The unit of every kept candidate; families are nodes of the graph behind those of the candidates."""
    families: dict[str, int] = {}
    members, nodes = [], []
    for number, index in enumerate(kept.tolist()):
        family = candidates[index].family
        if family is not None:
            members.append(number)
            nodes.append(len(kept) + families.setdefault(family, len(families)))
    ends = np.concatenate([first, np.array(members, dtype=np.int64)])
    others = np.concatenate([second, np.array(nodes, dtype=np.int64)])
    size = len(kept) + len(families)
    graph = sparse.coo_matrix((np.ones(len(ends), dtype=np.int8), (ends, others)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component[: len(kept)], dtype=np.int64)
