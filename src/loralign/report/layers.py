"""Grouping layer names by module kind and depth, so that hundreds of layers read as a small grid.

``base_model.model.model.layers.12.self_attn.q_proj`` is kind ``q_proj`` at depth 12. A name without digits has no
depth and stands by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_WRAPPERS = ("base_model.model.", "base_model.", "module.")


@dataclass(frozen=True)
class Place:
    """Where a layer stands: its module kind and its depth (``None`` outside the numbered blocks)."""

    kind: str
    depth: int | None


def place_layers(names: Iterable[str]) -> dict[str, Place]:
    """Return the place of every layer, in the given order, with kinds as short as they can be without colliding."""
    split = {name: _split(name) for name in dict.fromkeys(names)}
    kinds = dict.fromkeys((prefix, suffix) for prefix, depth, suffix in split.values() if depth is not None)
    labels = dict(zip(kinds, _shortest([".".join(filter(None, parts)) for parts in kinds]), strict=True))
    return {
        name: Place(suffix if depth is None else labels[prefix, suffix], depth)
        for name, (prefix, depth, suffix) in split.items()
    }


def short_name(name: str) -> str:
    """Return a layer's name without the wrappers that PEFT and data parallelism put around a model."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _split(name: str) -> tuple[str, int | None, str]:
    """Cut a dotted name at its first number: the block's depth. Later numbers (experts) are taken together as ``*``."""
    name = short_name(name)
    parts = name.split(".")
    # Only short ASCII digits are a depth: int() would take other scripts' digits and fail on endless ones.
    digits = [part.isascii() and part.isdigit() and len(part) <= 6 for part in parts]
    if not any(digits):
        return "", None, name
    cut = digits.index(True)
    rest = ["*" if digit else part for part, digit in zip(parts[cut + 1 :], digits[cut + 1 :], strict=True)]
    return ".".join(parts[:cut]), int(parts[cut]), ".".join(rest)


def _shortest(names: list[str]) -> list[str]:
    """Keep as many trailing components of each name as it takes to tell it from the others."""
    lengths = [1] * len(names)
    while True:
        labels = [".".join(name.split(".")[-length:]) for name, length in zip(names, lengths, strict=True)]
        counts = Counter(labels)
        clashing = [
            index
            for index, label in enumerate(labels)
            if counts[label] > 1 and lengths[index] <= names[index].count(".")
        ]
        if not clashing:
            return labels
        for index in clashing:
            lengths[index] += 1
