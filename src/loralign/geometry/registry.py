"""Weightings by name, for recipes and the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torchjd.aggregation

from loralign.errors import ConfigError
from loralign.geometry.peers import GramianWeighting
from loralign.geometry.weighting import (
    GeoWeighting,
    MatchWeighting,
    NormWeighting,
    UniformWeighting,
    Weighting,
)

WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "uniform": UniformWeighting,
    "norm": NormWeighting,
    "geo": GeoWeighting,
    "geo-layer": lambda: GeoWeighting(per="layer"),
    "match": MatchWeighting,
}
_PEERS = {
    "upgrad": "UPGradWeighting",
    "mgda": "MGDAWeighting",
    "cagrad": "CAGradWeighting",
    "pcgrad": "PCGradWeighting",
    "aligned-mtl": "AlignedMTLWeighting",
    "imtl-g": "IMTLGWeighting",
    "dualproj": "DualProjWeighting",
}
_ARGUMENTS: dict[str, dict[str, float]] = {"cagrad": {"c": 0.5}}


def make_weighting(name: str, *, space: str = "euclidean") -> Weighting:
    """Build a weighting from its name.

    Args:
        name: one of ``uniform``, ``norm``, ``geo``, ``geo-layer``, ``match``, or a TorchJD peer: ``upgrad``, ``mgda``,
            ``cagrad`` (c = 0.5), ``pcgrad``, ``aligned-mtl``, ``imtl-g``, ``dualproj``.
        space: the Gramian that a peer sees.

    Raises:
        ConfigError: an unknown name, with the nearest known one; or a peer whose solver is not installed.
    """
    if name in WEIGHTINGS:
        return WEIGHTINGS[name]()
    if name not in _PEERS:
        known = [*WEIGHTINGS, *_PEERS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
        raise ConfigError(f"weighting {name!r} is unknown", fix=hint)
    try:
        peer = getattr(torchjd.aggregation, _PEERS[name])
        return GramianWeighting(peer(**_ARGUMENTS.get(name, {})), space=space)
    except ImportError as error:
        raise ConfigError(f"weighting {name!r} needs a solver: {error}", fix="pip install 'loralign[peers]'") from error
