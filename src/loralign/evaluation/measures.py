"""The measures that are reported, each as sums over pairs."""

from __future__ import annotations

import numpy as np

from loralign.evaluation.bootstrap import Ratio
from loralign.evaluation.pairs import FloatArray, PairScores

MEASURES: dict[str, str] = {
    "accuracy_reward": "share of pairs whose chosen response has the higher implicit reward (log π − log π_ref)",
    "accuracy_summed": "share of pairs whose chosen response has the higher log-probability",
    "accuracy_normalised": "share of pairs whose chosen response has the higher log-probability per token",
    "margin": "β times the implicit reward of the chosen minus that of the rejected response",
    "loss": "DPO loss, −log σ(margin)",
    "log_ratio": "mean of log π − log π_ref per response token",
    "kl_policy_reference": "KL(π‖π_ref) per response token",
    "kl_reference_policy": "KL(π_ref‖π) per response token",
}
"""Name and meaning of every measure; logarithms are natural. The last three need a reference."""

LOWER_IS_BETTER = frozenset({"loss", "kl_policy_reference", "kl_reference_policy"})
"""Measures whose worst objective is the one with the highest value."""

WITHOUT_WORST = frozenset({"log_ratio"})
"""Measures that are neither good nor bad when high."""


def pair_measures(scores: PairScores, beta: float) -> dict[str, Ratio]:
    """Every measure of :data:`MEASURES` on the given pairs.

    A tie counts one half in the accuracies, so a policy that is its own reference, whose rewards are all exactly equal,
    has an ``accuracy_reward`` of 0.5 and not of 0. Without a reference the reward is the log-probability itself.

    Args:
        scores: at least one pair.
        beta: the β of DPO.
    """
    ones = np.ones(len(scores))
    length = scores.tokens.sum(1).astype(np.float64)
    reference = scores.reference_log_prob
    reward = scores.log_prob if reference is None else scores.log_prob - reference
    margin = beta * (reward[:, 0] - reward[:, 1])
    measures = {
        "accuracy_reward": Ratio(_wins(reward), ones),
        "accuracy_summed": Ratio(_wins(scores.log_prob), ones),
        "accuracy_normalised": Ratio(_wins(scores.log_prob / scores.tokens), ones),
        "margin": Ratio(margin, ones),
        "loss": Ratio(np.logaddexp(0, -margin), ones),
    }
    if reference is not None:
        measures["log_ratio"] = Ratio(reward.sum(1), length)
    for name in ("kl_policy_reference", "kl_reference_policy"):
        divergence: FloatArray | None = getattr(scores, name)
        if divergence is not None:
            measures[name] = Ratio(divergence.sum(1), length)
    return measures


def _wins(values: FloatArray) -> FloatArray:
    return (1 + np.sign(values[:, 0] - values[:, 1])) / 2
