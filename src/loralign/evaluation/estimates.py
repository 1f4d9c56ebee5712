"""Means over samples with their intervals."""

from __future__ import annotations

import numpy as np
import torch

from loralign.evaluation.bootstrap import Estimate, Ratio, bootstrap_mean


def mean_estimate(values: torch.Tensor, *, seed: int = 0) -> Estimate:
    """Mean over samples with its bootstrap interval.

    Args:
        values: ``(samples,)``.
        seed: of the resampling.
    """
    data = np.asarray(values.double().cpu().numpy())
    return bootstrap_mean([Ratio(data, np.ones_like(data))], seed=seed)
