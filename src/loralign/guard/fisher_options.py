"""The settings of a Fisher estimation, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loralign.errors import ConfigError

Kind = Literal["empirical", "sampled"]
Method = Literal["auto", "exact", "sketched"]
Reduction = Literal["mean", "sum"]


OPENING = 2
"""Response tokens that the commands estimate on: enough to tell a refusal from an answer (docs/results.md)."""


@dataclass(frozen=True)
class FisherOptions:
    """How a Fisher matrix is estimated and how many of its directions are kept.

    Attributes:
        kind: ``"empirical"``, on the data's responses, or ``"sampled"``, on the model's own: the true Fisher.
        method: what is summed per layer. ``"exact"``: ``F (m, m)``. ``"sketched"``: ``F Θ (m, w)``, in two passes over
            the data that make it agree with the exact one. ``"auto"``: ``F`` where that is no slower, else a sketch
            from one pass, rougher, for a cost of less than half of the model's own.
        energy: share of ``tr F`` that each layer's subspace is to reach.
        min_rank: fewest directions of a layer.
        max_rank: most directions of a layer, also where they do not reach the energy.
        rank: a fixed number of directions in place of the energy.
        oversampling: columns of a sketch beyond the largest rank; by default 128 for ``"sketched"``, 64 for ``"auto"``.
        passes: times that the data are gone through for the sketched layers; by default 2 for ``"sketched"`` and 1 for
            ``"auto"``. Every pass after the first multiplies by ``F`` the range that the one before found, as a power
            iteration does, and costs as much again.
        batch_size: samples in one backward pass.
        max_length: most tokens of prompt and response together.
        response_tokens: how many of a response's first tokens the loss is taken on; all of them by default. The first
            few decide between a refusal and an answer, and what follows is one wording of many. Sampled responses are
            no longer than that.
        reduction: of a sample's loss over its response tokens.
        min_agreement: least mean squared cosine between the subspaces of the two halves of the samples, on average over
            layers; below it the samples are too few. By default that of angles of 60°.
        seed: of the halves, the test matrices and the sampled responses.

    Raises:
        ConfigError: a value is out of range.
    """

    kind: Kind = "empirical"
    method: Method = "auto"
    energy: float = 0.8
    min_rank: int = 4
    max_rank: int = 64
    rank: int | None = None
    oversampling: int | None = None
    passes: int | None = None
    batch_size: int = 8
    max_length: int = 256
    response_tokens: int | None = None
    reduction: Reduction = "mean"
    min_agreement: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, ("empirical", "sampled"))
        _check_choice("method", self.method, ("auto", "exact", "sketched"))
        _check_choice("reduction", self.reduction, ("mean", "sum"))
        for name, value, low, high in (
            ("energy", self.energy, 0.0, 1.0),
            ("min_agreement", self.min_agreement, 0.0, 1.0),
            ("min_rank", self.min_rank, 1, self.max_rank),
            ("rank", self.rank, 1, None),
            ("oversampling", self.oversampling, 0, None),
            ("passes", self.passes, 1, None),
            ("batch_size", self.batch_size, 1, None),
            ("max_length", self.max_length, 2, None),
            ("response_tokens", self.response_tokens, 1, None),
        ):
            if value is not None and not (low <= value and (high is None or value <= high)):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ConfigError(f"{name} is {value}", place="Fisher estimation", fix=f"it must be {bound}")

    @property
    def largest_rank(self) -> int:
        """Most directions that any layer can have."""
        return self.max_rank if self.rank is None else self.rank

    @property
    def sketch_passes(self) -> int:
        """Passes over the data where any layer is sketched."""
        return (1 if self.method == "auto" else 2) if self.passes is None else self.passes

    def least_rank(self, rows: int) -> int:
        """Fewest directions that a layer with ``rows`` outputs must have."""
        return min(rows, self.min_rank if self.rank is None else self.rank)

    def sketch_width(self, rows: int) -> int | None:
        """Columns ``w`` of the test matrix of a layer with ``rows = m`` outputs, ``None`` where its sums are exact.

        For tokens ``T``, exact sums take ``T·m·(T + m)`` multiplications and sketched ones ``T·(T·(m + w) + 2·m·w)``,
        the trace included, so that up to ``m = 2w`` a sketch saves nothing.
        """
        own = self.oversampling
        width = self.largest_rank + ((64 if self.method == "auto" else 128) if own is None else own)
        if self.method == "exact" or width >= rows or (self.method == "auto" and rows <= 2 * width):
            return None
        return width


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise ConfigError(f"{name} {value!r} is unknown", place="Fisher estimation", fix=f"use one of {choices}")
