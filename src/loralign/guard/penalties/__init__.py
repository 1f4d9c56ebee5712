"""The penalties that hold the alignment-critical part of an update: every term, its value and its gradient."""

from loralign.guard.penalties.options import PenaltyOptions, PenaltyWeights
from loralign.guard.penalties.penalty import GuardPenalty
from loralign.guard.penalties.result import PenaltyResult

__all__ = ["GuardPenalty", "PenaltyOptions", "PenaltyResult", "PenaltyWeights"]
