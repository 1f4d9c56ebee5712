"""How far layers agree between pairs of estimates or trainings, and how that is summed up by depth and by kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, TypeVar

from loralign.experiments.layer_similarity import chance_similarities, update_similarities
from loralign.guard import AlignmentSubspace
from loralign.guard.layer_subspace import Projection
from loralign.models.adapter_factors import SavedFactors
from loralign.report.format import significant, whole_percent
from loralign.report.layers import Place, place_layers
from loralign.report.theme import Table

THIRDS = ("early", "middle", "deep")
"""Of the depth of a model."""
MID_TO_DEEP = THIRDS[1:]
NO_DEPTH = "outside the blocks"

T = TypeVar("T")


@dataclass(frozen=True)
class Agreement:
    """One comparison, layer by layer.

    Attributes:
        name: what is compared.
        pairs: by the name of a pair, the agreement of its layers by layer name, a cosine.
        chance: what independent random ones have, by layer name.
    """

    name: str
    pairs: Mapping[str, Mapping[str, float]]
    chance: Mapping[str, float]

    def layers(self) -> dict[str, float]:
        """Mean over the pairs that have the layer, by layer name."""
        names = dict.fromkeys(layer for values in self.pairs.values() for layer in values)
        return {layer: fmean(values[layer] for values in self.pairs.values() if layer in values) for layer in names}


def subspace_agreement(name: str, pairs: Mapping[str, tuple[AlignmentSubspace, AlignmentSubspace]]) -> Agreement:
    """Root of the mean squared cosine of the principal angles of pairs of subspaces, a cosine as that of updates is.

    Of independent random ones the mean squared cosine is ``max(q, p)/m`` on average, so chance is ``√(max(q, p)/m)``.

    Raises:
        StateError: two have no layer in common.
    """
    chances = [_roots(chance_similarities(*pair)) for pair in pairs.values()]
    layers = dict.fromkeys(layer for one in chances for layer in one)
    chance = {layer: fmean(one[layer] for one in chances if layer in one) for layer in layers}
    found = {pair: _roots(first.similarity(second)) for pair, (first, second) in pairs.items()}
    return Agreement(name, found, chance)


def _roots(values: Mapping[str, float]) -> dict[str, float]:
    return {layer: math.sqrt(value) for layer, value in values.items()}


def update_agreement(
    name: str,
    pairs: Mapping[str, tuple[Mapping[str, SavedFactors], Mapping[str, SavedFactors]]],
    subspace: AlignmentSubspace,
    projection: Projection,
) -> Agreement:
    """Cosine of the alignment-critical parts of pairs of adapters; chance gives 0."""
    found = {pair: update_similarities(*both, subspace, projection) for pair, both in pairs.items()}
    return Agreement(name, found, dict.fromkeys(subspace.layers, 0.0))


def seed_pairs(by_seed: Mapping[int, T]) -> dict[str, tuple[T, T]]:
    """Every two of them, by name."""
    return {f"{first} and {second}": (by_seed[first], by_seed[second]) for first, second in combinations(by_seed, 2)}


def thirds(layers: Iterable[str]) -> dict[str, str]:
    """The third of the depth in which each layer stands, by layer name; blocks are counted from 0 to the last."""
    places = place_layers(layers)
    blocks = 1 + max((place.depth for place in places.values() if place.depth is not None), default=0)
    return {name: NO_DEPTH if place.depth is None else _third(place, blocks) for name, place in places.items()}


def _third(place: Place, blocks: int) -> str:
    return THIRDS[3 * (place.depth or 0) // blocks]


@dataclass(frozen=True)
class Summary:
    """A comparison over some layers.

    Attributes:
        layers: how many.
        mean: over layers and pairs.
        lowest: mean over layers of the pair in which it is lowest.
        highest: of that in which it is highest.
        above: share of the layers whose mean over pairs is above the threshold.
        chance: mean over layers of what independent random ones have.
    """

    layers: int
    mean: float
    lowest: float
    highest: float
    above: float
    chance: float


def summarise(found: Agreement, chosen: Sequence[str], threshold: float) -> Summary | None:
    """Sum up the chosen layers; ``None`` where the comparison has none of them."""
    means = {layer: value for layer, value in found.layers().items() if layer in set(chosen)}
    if not means:
        return None
    single = [
        fmean(values[layer] for layer in means if layer in values)
        for values in found.pairs.values()
        if any(layer in values for layer in means)
    ]
    return Summary(
        layers=len(means),
        mean=fmean(means.values()),
        lowest=min(single),
        highest=max(single),
        above=sum(value > threshold for value in means.values()) / len(means),
        chance=fmean(found.chance[layer] for layer in means),
    )


def depth_table(found: Sequence[Agreement], threshold: float) -> Table:
    """Comparisons by third of the depth."""
    rows = []
    for one in found:
        of = thirds(one.chance)
        for third in (*THIRDS, NO_DEPTH):
            summary = summarise(one, [name for name, its in of.items() if its == third], threshold)
            if summary is not None:
                spread = f"{significant(summary.lowest)} to {significant(summary.highest)}"
                values = (significant(summary.mean), spread, whole_percent(summary.above), significant(summary.chance))
                rows.append((one.name, third, str(summary.layers), *values))
    above = f"layers above {significant(threshold, 2)}"
    return Table(("comparison", "depth", "layers", "mean", "pairs", above, "chance"), tuple(rows))


def kind_table(found: Sequence[Agreement], threshold: float) -> Table:
    """Means by the kind of layer, and the share of layers above the threshold."""
    places = place_layers(dict.fromkeys(name for one in found for name in one.chance))
    rows = []
    for kind in dict.fromkeys(place.kind for place in places.values()):
        names = [name for name, place in places.items() if place.kind == kind]
        summaries = [summarise(one, names, threshold) for one in found]
        cells = ("" if one is None else f"{significant(one.mean)} ({whole_percent(one.above)})" for one in summaries)
        rows.append((kind, *cells))
    return Table(("layer (share above)", *(one.name for one in found)), tuple(rows))


def agreement_columns(found: Sequence[Agreement]) -> dict[str, list[Any]]:
    """Every value as columns of a Parquet file: comparison, pair, layer, kind, block, third, value and chance."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("comparison", "pair", "layer", "kind", "block", "third", "value", "chance")
    }
    for one in found:
        places, of = place_layers(one.chance), thirds(one.chance)
        for pair, values in one.pairs.items():
            for layer, value in values.items():
                place = places[layer]
                row = (one.name, pair, layer, place.kind, place.depth, of[layer], value, one.chance[layer])
                for column, cell in zip(columns.values(), row, strict=True):
                    column.append(cell)
    return columns
