"""Which of the samples that must survive a subspace is estimated from."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from loralign.runs.guarding import balanced, label_groups

Draw = Literal["first", "bootstrap", "half", "other half"]
"""``first``: the first of every label and category, whatever the seed. ``bootstrap``: as many of every label and
category as those, drawn with replacement from all. ``half`` and ``other half``: the two disjoint halves of the first,
split at random with the same mix of labels and categories."""


def draw_samples(rows: Any, count: int, draw: Draw, seed: int) -> Any:
    """Draw samples, spread over labels and categories.

    Args:
        rows: a dataset with ``label`` and perhaps ``category``.
        count: samples of the whole; halves have half of them.
        draw: which.
        seed: of everything but ``first``.
    """
    if draw == "first":
        return balanced(rows, count)
    generator = np.random.default_rng(seed)
    if draw == "bootstrap":
        pools = label_groups(rows)
        sizes = {key: len(members) for key, members in label_groups(balanced(rows, count)).items()}
        chosen = [int(one) for key, size in sizes.items() for one in generator.choice(pools[key], size)]
        return rows.select(chosen)
    whole = balanced(rows, count)
    # Group after group, so that every second one is half of each, and both halves are of one size to within one.
    ordered = [int(one) for members in label_groups(whole).values() for one in generator.permutation(members)]
    return whole.select(ordered[0 if draw == "half" else 1 :: 2])
