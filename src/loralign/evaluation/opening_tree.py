"""Openings of responses as one tree of tokens, so that a model reads every shared beginning once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OpeningTree:
    """The proper beginnings of openings are its ``n`` inner nodes; every first or next token of one is an edge.

    The last token of an opening is only predicted and never read.

    Args:
        openings: token ids of each opening.
        tokens: ``(n,)`` int64, the last token of each inner node; a node comes after its parent.
        depth: ``(n,)`` int64, tokens of each inner node.
        sees: ``(n, n)`` bool, whether node i reads node j: its ancestors and itself.
        sources: ``(edges,)`` int64, which prediction an edge's token stands in: 0 after the prompt, 1 + i after node i.
        labels: ``(edges,)`` int64, the tokens of the edges.
        paths: ``(edges, openings)`` float64, 1 where an edge is part of an opening.
    """

    openings: tuple[tuple[int, ...], ...]
    tokens: Tensor
    depth: Tensor
    sees: Tensor
    sources: Tensor
    labels: Tensor
    paths: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest opening."""
        return max(len(opening) for opening in self.openings)


def opening_tree(openings: Sequence[Sequence[int]]) -> OpeningTree:
    """Build the tree of openings, each of at least one token."""
    listed = tuple(tuple(opening) for opening in openings)
    edges = sorted({opening[:end] for opening in listed for end in range(1, len(opening) + 1)}, key=_by_length)
    inner = sorted({opening[:end] for opening in listed for end in range(1, len(opening))}, key=_by_length)
    row = {(): 0} | {node: 1 + index for index, node in enumerate(inner)}
    return OpeningTree(
        openings=listed,
        tokens=torch.tensor([node[-1] for node in inner], dtype=torch.long),
        depth=torch.tensor([len(node) for node in inner], dtype=torch.long),
        sees=torch.tensor([[node[: len(other)] == other for other in inner] for node in inner], dtype=torch.bool).view(
            len(inner), len(inner)
        ),
        sources=torch.tensor([row[edge[:-1]] for edge in edges], dtype=torch.long),
        labels=torch.tensor([edge[-1] for edge in edges], dtype=torch.long),
        paths=torch.tensor(
            [[float(opening[: len(edge)] == edge) for opening in listed] for edge in edges], dtype=torch.float64
        ),
    )


def prefix_free(openings: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The openings without those that begin with another one, so that no two can be begun by the same response."""
    kept: list[tuple[int, ...]] = []
    for opening in sorted({tuple(one) for one in openings}, key=_by_length):
        if not any(opening[: len(other)] == other for other in kept):
            kept.append(opening)
    return kept


def _by_length(tokens: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(tokens), tokens
