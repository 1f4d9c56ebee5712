"""Log-probabilities and Kullback–Leibler divergences of next-token distributions."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TokenStatistics(NamedTuple):
    """What one row of logits says about its label and about the reference; each ``(rows,)``, in nats.

    Args:
        log_prob: log π(label).
        reference_log_prob: log π_ref(label), or None without a reference.
        kl_policy_reference: KL(π‖π_ref) over the whole vocabulary, or None without a reference.
        kl_reference_policy: KL(π_ref‖π) over the whole vocabulary, or None without a reference.
    """

    log_prob: torch.Tensor
    reference_log_prob: torch.Tensor | None = None
    kl_policy_reference: torch.Tensor | None = None
    kl_reference_policy: torch.Tensor | None = None


def token_statistics(
    logits: torch.Tensor, labels: torch.Tensor, reference_logits: torch.Tensor | None = None
) -> TokenStatistics:
    """Log-probabilities of the labels and both divergences, in float32 or better.

    With d = log π − log π_ref the divergences are computed as Σ π·d + Σ(π_ref − π) and −Σ π_ref·d − Σ(π_ref − π). The
    second sums are zero but for rounding, and cancel the first-order effect of rounding in the log-probabilities: the
    error is of second order in it, equal distributions give exactly zero, and what little negative remains is set to 0.

    Args:
        logits: ``(rows, vocabulary)`` of the policy, any floating dtype.
        labels: ``(rows,)`` token ids.
        reference_logits: ``(rows, vocabulary)`` of the reference.
    """
    log_policy = _log_softmax(logits)
    log_prob = _pick(log_policy, labels)
    if reference_logits is None:
        return TokenStatistics(log_prob)
    log_reference = _log_softmax(reference_logits)
    reference_log_prob = _pick(log_reference, labels)
    policy, reference = log_policy.exp(), log_reference.exp()
    difference = log_policy.sub_(log_reference)
    forward = torch.linalg.vecdot(policy, difference)
    backward = torch.linalg.vecdot(reference, difference)
    correction = reference.sub_(policy).sum(-1)
    return TokenStatistics(
        log_prob,
        reference_log_prob,
        (forward + correction).clamp_min_(0),
        (-backward - correction).clamp_min_(0),
    )


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _pick(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
