"""Alignment subspaces that the cells of an experiment share, each estimated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from loralign.experiments.contents import contents_digest, identity_digest
from loralign.guard import AlignmentSubspace
from loralign.guard.fisher_options import OPENING
from loralign.models.dtype import DtypeName
from loralign.runs.drawing import Draw
from loralign.runs.subspace import estimate_subspace

# Left out where they are what they are by default, so that a subspace goes by the same name as before there was this
# choice.
_LATER: dict[str, Any] = {
    **dict.fromkeys(("draw", "energy", "min_rank", "max_rank", "min_agreement", "revision")),
    "dtype": "auto",
    "load_in_4bit": False,
}


@dataclass(frozen=True)
class SubspaceSpec:
    """What decides a subspace.

    Attributes:
        model: whose.
        data: what must survive.
        samples: of that.
        response_tokens: first tokens of a response that count; 0 is all of them.
        rank: directions of every layer; ``None`` takes as many as reach the energy.
        method: ``exact``, ``sketched`` or ``auto``.
        oversampling: columns of the sketch beyond the rank; ``None`` is the method's own.
        max_length: of a sample, in tokens.
        target_modules: layers, as for LoRA.
        seed: of what is drawn, of halves and of sketches.
        draw: which samples of the data; ``None`` here and below is the estimate's own.
        energy: share of the Fisher trace that every layer's rank is to reach.
        min_rank: fewest directions of a layer.
        max_rank: most directions of a layer.
        min_agreement: least agreement of the two halves of the samples.
        revision: of a hub model; ``None`` is its main one.
        dtype: of the base weights.
        load_in_4bit: quantise the base.
    """

    model: str | None = None
    data: tuple[str, ...] = ("builtin",)
    samples: int = 96
    response_tokens: int = OPENING
    rank: int | None = None
    method: str = "auto"
    oversampling: int | None = None
    max_length: int = 256
    target_modules: tuple[str, ...] = ("all-linear",)
    seed: int = 0
    draw: Draw | None = None
    energy: float | None = None
    min_rank: int | None = None
    max_rank: int | None = None
    min_agreement: float | None = None
    revision: str | None = None
    dtype: DtypeName = "auto"
    load_in_4bit: bool = False

    @classmethod
    def of(cls, base: Mapping[str, Any], **changes: Any) -> SubspaceSpec:
        """That which ``loralign adapt --guard auto`` estimates with a recipe and seed 0, and what is to differ."""
        values: dict[str, Any] = {
            "model": base.get("model"),
            "data": tuple(base["alignment_data"]),
            "samples": base["fisher_samples"],
            "response_tokens": base["fisher_tokens"],
            "max_length": base.get("max_length") or 256,
            "target_modules": tuple(base["lora_target_modules"]),
            "revision": base.get("revision"),
            "dtype": base.get("dtype") or "auto",
            "load_in_4bit": bool(base.get("load_in_4bit")),
        }
        return cls(**{**values, **changes})

    def values(self) -> dict[str, Any]:
        """Every choice that was made, by name."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}


def estimated(spec: SubspaceSpec, output: Path) -> Path:
    """The directory of a subspace, estimated now unless an earlier call or another worker did.

    Args:
        spec: which.
        output: of the experiment.

    Raises:
        LoralignError: any fault of model, data or options.
    """
    named = [spec.model or "", *spec.data]
    identity = {**spec.values(), "contents": [contents_digest(place) for place in named]}
    target = (output / "subspaces" / identity_digest(identity)[:16]).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in spec.values().items() if name not in ("model", "data")}
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            estimate_subspace(spec.model, target, data=spec.data, **options)
    return target


def truncated(source: Path, rank: int) -> Path:
    """The directory of the same subspace with at most ``rank`` directions per layer.

    Eigenvectors stand in the order of their eigenvalues. Of whole Fisher matrices the leading ones are the same
    whichever number of them is asked for, and of sketches those from the wider one are the better; so truncating one
    estimate of the largest rank gives what an estimate of each rank would, or better, at the cost of one, and makes
    them nested: what differs between ranks is the rank alone.

    Args:
        source: directory of a subspace.
        rank: above the source's largest it gives the same as that.

    Raises:
        StateError: the source cannot be read.
    """
    subspace = AlignmentSubspace.load(source)
    rank = min(rank, max(layer.rank for layer in subspace.layers.values()))
    target = source.with_name(f"{source.name}-rank-{rank}")
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            subspace.truncated(rank).save(target)
    return target
