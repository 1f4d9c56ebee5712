"""What is searched, for what and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from loralign.errors import ConfigError
from loralign.experiments.outcomes import MEASURES, OBJECTIVE, TASK
from loralign.experiments.samplers import SeededByTrial, nsga2, tpe
from loralign.experiments.space import Parameter

SamplerName = Literal["grid", "tpe", "nsga2"]


@dataclass(frozen=True)
class SearchPlan:
    """A search.

    Attributes:
        space: the fields that vary.
        measures: the two that matter, by key.
        sampler: ``grid`` takes every combination; ``tpe`` and ``nsga2`` propose one trial after the other.
        trials: of a search that proposes, those of earlier calls included.
        population: trials of a generation of ``nsga2``.
        seed: of the sampler.
    """

    space: tuple[Parameter, ...]
    measures: tuple[str, str]
    sampler: SamplerName = "grid"
    trials: int = 20
    population: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("population", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{getattr(self, name)} is too small", place=name, fix=f"use at least {least}")
        for key in self.measures:
            if key not in [one.key for one in MEASURES] and not key.startswith((OBJECTIVE, TASK)):
                known = ", ".join([*(one.key for one in MEASURES), f"{OBJECTIVE}NAME", f"{TASK}NAME"])
                raise ConfigError(f"{key!r} is no measure", place="--trade", fix=f"choose two of {known}")
        if self.measures[0] == self.measures[1]:
            raise ConfigError(f"{self.measures[0]} stands there twice", place="--trade", fix="choose two measures")
        if self.sampler == "grid":
            object.__setattr__(self, "space", tuple(one.listed() for one in self.space))

    def make_sampler(self) -> SeededByTrial | None:
        """Of Optuna's; none for a grid, whose trials are known beforehand."""
        if self.sampler == "grid":
            return None
        return tpe(self.seed) if self.sampler == "tpe" else nsga2(self.seed, self.population)

    def identity(self) -> dict[str, Any]:
        """What workers must agree on to share trials; the number of trials may grow."""
        settings = {"population": self.population, "seed": self.seed} if self.sampler != "grid" else {}
        return {"space": [asdict(one) for one in self.space], "measures": self.measures, **settings}
