"""Preference accuracy, margins and reference drift of a model on validation pairs, with bootstrap intervals.

:func:`tokenise_pairs` → :func:`score_pairs` → :class:`PairScores` → :func:`preference_scores` and
:func:`compare_scores` → :class:`Scores`. Nothing here loads a model or knows a trainer.
"""

from __future__ import annotations

from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.measures import LOWER_IS_BETTER, MEASURES
from loralign.evaluation.pairs import PairScores
from loralign.evaluation.preference import compare_scores, preference_scores
from loralign.evaluation.samples import SampleAnswer, generate_samples
from loralign.evaluation.scores import ObjectiveScores, Scores, Worst
from loralign.evaluation.scoring import score_pairs
from loralign.evaluation.tokenising import tokenise_pairs

__all__ = [
    "LOWER_IS_BETTER",
    "MEASURES",
    "Estimate",
    "ObjectiveScores",
    "PairScores",
    "SampleAnswer",
    "Scores",
    "Worst",
    "compare_scores",
    "generate_samples",
    "preference_scores",
    "score_pairs",
    "tokenise_pairs",
]
