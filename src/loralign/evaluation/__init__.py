"""What a model has become: preference accuracy, drift, refusals and task losses, with bootstrap intervals.

Preferences: :func:`tokenise_pairs` → :func:`score_pairs` → :class:`PairScores` → :func:`preference_scores` and
:func:`compare_scores` → :class:`Scores`. Safety: :func:`generate_answers` → a :class:`Judge` inside
:func:`safety_scores` → :class:`SafetyScores`. Nothing here loads a model or knows a trainer.
"""

from __future__ import annotations

from loralign.evaluation.answers import generate_answers
from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.drift_rows import DriftRow, drift_rows
from loralign.evaluation.drift_scores import DriftScores, drift_scores
from loralign.evaluation.estimates import mean_estimate
from loralign.evaluation.judge_quality import JudgeQuality, judge_quality
from loralign.evaluation.labelled_completions import LabelledCompletion, load_labelled_completions
from loralign.evaluation.measures import LOWER_IS_BETTER, MEASURES
from loralign.evaluation.pairs import PairScores
from loralign.evaluation.preference import compare_scores, preference_scores
from loralign.evaluation.refusal import Judge, PhraseJudge
from loralign.evaluation.refusal_openings import Openings, score_openings
from loralign.evaluation.responders import LocalResponder, Responder, ServerResponder
from loralign.evaluation.responding import collect_responses
from loralign.evaluation.response_store import ResponseStore
from loralign.evaluation.safety import CategoryRefusals, SafetyScores, safety_scores
from loralign.evaluation.samples import SampleAnswer, generate_samples
from loralign.evaluation.score_mode import response_divergences, score_prompts
from loralign.evaluation.scores import ObjectiveScores, Scores, Worst
from loralign.evaluation.scoring import score_pairs
from loralign.evaluation.tokenising import tokenise_pairs
from loralign.guard.losses import completion_losses

__all__ = [
    "LOWER_IS_BETTER",
    "MEASURES",
    "CategoryRefusals",
    "DriftRow",
    "DriftScores",
    "Estimate",
    "Judge",
    "JudgeQuality",
    "LabelledCompletion",
    "LocalResponder",
    "ObjectiveScores",
    "Openings",
    "PairScores",
    "PhraseJudge",
    "Responder",
    "ResponseStore",
    "SafetyScores",
    "SampleAnswer",
    "Scores",
    "ServerResponder",
    "Worst",
    "collect_responses",
    "compare_scores",
    "completion_losses",
    "drift_rows",
    "drift_scores",
    "generate_answers",
    "generate_samples",
    "judge_quality",
    "load_labelled_completions",
    "mean_estimate",
    "preference_scores",
    "response_divergences",
    "safety_scores",
    "score_openings",
    "score_pairs",
    "score_prompts",
    "tokenise_pairs",
]
