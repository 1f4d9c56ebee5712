"""What a model has become: preference accuracy, drift, refusals and task losses, with bootstrap intervals.

Preferences: :func:`tokenise_pairs` → :func:`score_pairs` → :class:`PairScores` → :func:`preference_scores` and
:func:`compare_scores` → :class:`Scores`. Safety: :func:`generate_answers` → a :class:`Judge` inside
:func:`safety_scores` → :class:`SafetyScores`. Nothing here loads a model or knows a trainer.
"""

from __future__ import annotations

from loralign.evaluation.answers import generate_answers
from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.estimates import mean_estimate
from loralign.evaluation.measures import LOWER_IS_BETTER, MEASURES
from loralign.evaluation.pairs import PairScores
from loralign.evaluation.preference import compare_scores, preference_scores
from loralign.evaluation.refusal import Judge, PhraseJudge
from loralign.evaluation.safety import CategoryRefusals, SafetyScores, safety_scores
from loralign.evaluation.samples import SampleAnswer, generate_samples
from loralign.evaluation.scores import ObjectiveScores, Scores, Worst
from loralign.evaluation.scoring import score_pairs
from loralign.evaluation.tokenising import tokenise_pairs
from loralign.guard.losses import completion_losses

__all__ = [
    "LOWER_IS_BETTER",
    "MEASURES",
    "CategoryRefusals",
    "Estimate",
    "Judge",
    "ObjectiveScores",
    "PairScores",
    "PhraseJudge",
    "SafetyScores",
    "SampleAnswer",
    "Scores",
    "Worst",
    "compare_scores",
    "completion_losses",
    "generate_answers",
    "generate_samples",
    "mean_estimate",
    "preference_scores",
    "safety_scores",
    "score_pairs",
    "tokenise_pairs",
]
