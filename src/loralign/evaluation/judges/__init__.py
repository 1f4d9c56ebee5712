"""Judges of responses beyond phrases: text classifiers, language models with a rubric, toxicity, and combinations.

Every judge has a ``name`` and gives one probability for each response, see :class:`loralign.evaluation.refusal.Judge`.
"""

from __future__ import annotations

from loralign.evaluation.judges.by_name import JUDGES, TOXICITY_SCORERS, judge_by_name, toxicity_by_name
from loralign.evaluation.judges.classifier import PROMPT_AND_RESPONSE, ClassifierJudge
from loralign.evaluation.judges.combined import AllOf, AnyOf
from loralign.evaluation.judges.errors import JudgingError
from loralign.evaluation.judges.questions import REFUSAL_RUBRIC
from loralign.evaluation.judges.rubric import RubricJudge
from loralign.evaluation.judges.toxicity import DetoxifyScorer, ProfanityScorer

__all__ = [
    "JUDGES",
    "PROMPT_AND_RESPONSE",
    "REFUSAL_RUBRIC",
    "TOXICITY_SCORERS",
    "AllOf",
    "AnyOf",
    "ClassifierJudge",
    "DetoxifyScorer",
    "JudgingError",
    "ProfanityScorer",
    "RubricJudge",
    "judge_by_name",
    "toxicity_by_name",
]
