"""What may be measured of a finished cell, each measurement known by its settings and the contents of its set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loralign.experiments.contents import identity_digest, known_by_content

Kind = Literal["driftcheck", "language", "task"]


@dataclass(frozen=True)
class Measurement:
    """Something to measure of an adapter beside its run's own scores, which says nothing about what trains it.

    Attributes:
        kind: what it is.
        settings: of it, as plain values.
        fingerprint: hexadecimal, of both and of the contents of the files that the settings name.
    """

    kind: Kind
    settings: Mapping[str, Any] = field(hash=False)
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """Name of its directory among a cell's measurements."""
        return f"{self.kind}-{self.fingerprint[:16]}"


def make_measurement(kind: Kind, settings: Mapping[str, Any]) -> Measurement:
    """A measurement with its fingerprint."""
    identity = {"kind": kind, "settings": {name: known_by_content(value) for name, value in settings.items()}}
    return Measurement(kind, dict(settings), identity_digest(identity))
