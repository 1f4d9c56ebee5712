"""The subspaces that the settings of a sensitivity analysis are held by, and what there is to say of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from loralign.experiments.factors import Factors, Setting
from loralign.experiments.subspaces import SubspaceSpec, estimated, truncated
from loralign.guard import AlignmentSubspace
from loralign.report.format import significant, whole_percent
from loralign.report.theme import Table


def subspace_of(setting: Setting, base: Mapping[str, Any], factors: Factors, output: Path) -> Path:
    """The directory of a setting's subspace, estimated now unless it was before.

    Settings that differ in the rank alone share one estimate of the largest rank that is asked for, or of as many
    directions as the samples and the layer support: a rank beyond them is capped, layer by layer. How far the two
    halves of the samples agree is reported and stops nothing.

    Args:
        setting: which.
        base: recipe of ``loralign adapt``.
        factors: with the largest rank.
        output: of the experiment.

    Raises:
        DataError: the samples are too few even for the least rank.
        LoralignError: any other fault of model or data.
    """
    changes: dict[str, Any] = {"min_agreement": 0.0}
    if setting.samples is not None:
        changes["samples"] = setting.samples
    if setting.sketch is not None:
        changes["oversampling"] = setting.sketch
    if setting.rank is None:
        return estimated(SubspaceSpec.of(base, **changes), output)
    # An energy of all that there is takes every direction up to the largest rank.
    widest = SubspaceSpec.of(base, **changes, energy=1.0, min_rank=1, max_rank=max(factors.rank))
    return truncated(estimated(widest, output), setting.rank)


def subspace_table(guards: Mapping[Setting, Path]) -> Table:
    """Ranks, captured energy, samples and agreement of every setting's subspace."""
    return Table(
        ("arm", "mean rank", "ranks", "layers below the rank", "energy", "samples", "sketch", "halves agree"),
        tuple(_row(setting, AlignmentSubspace.load(place)) for setting, place in guards.items()),
    )


def _row(setting: Setting, subspace: AlignmentSubspace) -> tuple[str, ...]:
    layers, info = list(subspace.layers.values()), subspace.info
    ranks = [layer.rank for layer in layers]
    short = "" if setting.rank is None else str(sum(rank < setting.rank for rank in ranks))
    return (
        setting.name,
        significant(fmean(ranks)),
        f"{min(ranks)} to {max(ranks)}",
        short,
        whole_percent(fmean(layer.energy for layer in layers)),
        str(info.samples),
        f"{info.sketch_width} columns" if info.sketch_width else "none",
        "" if info.half_agreement is None else significant(info.half_agreement),
    )
