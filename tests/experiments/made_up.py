"""Results of arms that were never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loralign.evaluation.bootstrap import Ratio
from loralign.experiments.experiment import Arm, ArmResult
from loralign.experiments.seed_means import Samples
from loralign.experiments.store import CellRecord

SAMPLES = 20


def samples(mean: float, spread: float) -> Samples:
    """Twenty samples with this mean, the same around it for every arm."""
    noise = np.random.default_rng(0).normal(size=SAMPLES)
    return (Ratio(mean + spread * (noise - noise.mean()), np.ones(SAMPLES)),)


def records(*seeds: int) -> tuple[CellRecord, ...]:
    """Finished cells with these seeds."""
    return tuple(CellRecord("f" * 64, "adapt", "finished", {"seed": seed}) for seed in seeds)


def made_up(name: str, overrides: Mapping[str, Any], *seeds: Mapping[str, float], spread: float = 1e-4) -> ArmResult:
    """An arm whose seeds have these means."""
    outcomes = tuple({key: samples(mean, spread) for key, mean in one.items()} for one in seeds)
    return ArmResult(Arm(name, overrides), records(*range(len(seeds))), outcomes)


def broken(name: str, overrides: Mapping[str, Any], *seeds: Mapping[str, float]) -> ArmResult:
    """The same with a further seed that failed."""
    whole = made_up(name, overrides, *seeds)
    return ArmResult(whole.arm, whole.cells, whole.outcomes, {7: "out of memory"})
