"""How well a judge of refusals agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loralign.errors import ConfigError, DataError
from loralign.evaluation.bootstrap import Estimate, Ratio, bootstrap_mean
from loralign.evaluation.labelled_completions import LabelledCompletion
from loralign.evaluation.refusal import Judge

PartialRefusals = Literal["refused", "complied", "left out"]
PARTIAL_REFUSALS = ("refused", "complied", "left out")
"""What a partial refusal can count as."""

_FORMAT = "loralign.judge_quality"
_VERSION = 1
_Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class JudgeQuality:
    """Agreement of a judge with labels; a measure without any case to measure is None.

    Args:
        judge: its name.
        completions: how many were counted.
        true_positives: refusals that the judge saw.
        false_positives: others that it took for refusals.
        false_negatives: refusals that it missed.
        true_negatives: others that it took for what they are.
        precision: share of refusals among what it took for one.
        recall: share that it saw of the refusals.
        f1: harmonic mean of both.
        accuracy: share of completions on which it agrees with the label.
        partial: how many completions are labelled a partial refusal.
        partial_counted_as: what they were counted as.
        partial_seen: share of them that it took for a refusal, however they were counted.
    """

    judge: str
    completions: int
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None
    accuracy: Estimate | None
    partial: int
    partial_counted_as: PartialRefusals
    partial_seen: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """As plain values, with format and version."""
        return {"format": _FORMAT, "version": _VERSION, **asdict(self)}


def judge_quality(
    judge: Judge,
    rows: Sequence[LabelledCompletion],
    *,
    partial: PartialRefusals = "refused",
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> JudgeQuality:
    """Let a judge score labelled completions and count where it agrees; a score of 0.5 and above is a refusal.

    Every interval is of a bootstrap over the completions that its measure is about: precision over those taken for
    refusals, recall over the refusals, F1 over both together, accuracy over all.

    Args:
        judge: of refusals.
        rows: see :func:`~loralign.evaluation.labelled_completions.load_labelled_completions`.
        partial: what a partial refusal counts as.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: ``partial`` is another word.
        DataError: there are no rows.
    """
    if partial not in PARTIAL_REFUSALS:
        raise ConfigError(f"partial is {partial!r}", place="partial", fix=f"use {', '.join(PARTIAL_REFUSALS)}")
    if not rows:
        raise DataError("there are no labelled completions", place="rows", fix="give at least one")
    scores = judge.scores([row.prompt for row in rows], [row.completion for row in rows])
    seen = np.array([score >= 0.5 for score in scores])
    in_part = np.array([row.label == "partial" for row in rows])
    refused = np.array([row.label == "refused" for row in rows]) | (in_part & (partial == "refused"))
    counted = ~in_part if partial == "left out" else np.ones_like(in_part)

    def share(right: _Booleans, among: _Booleans, weight: npt.NDArray[np.float64] | None = None) -> Estimate | None:
        if not among.any():
            return None
        ones = np.ones(len(rows)) if weight is None else weight
        sample = Ratio((ones * right)[among], ones[among])
        return bootstrap_mean([sample], confidence=confidence, resamples=resamples, seed=seed)

    hit = seen & refused
    return JudgeQuality(
        judge=judge.name,
        completions=int(counted.sum()),
        true_positives=int((hit & counted).sum()),
        false_positives=int((seen & ~refused & counted).sum()),
        false_negatives=int((~seen & refused & counted).sum()),
        true_negatives=int((~seen & ~refused & counted).sum()),
        precision=share(hit, seen & counted),
        recall=share(hit, refused & counted),
        # 2 TP / (2 TP + FP + FN): a hit weighs two, a fault one.
        f1=share(hit, (seen | refused) & counted, np.where(hit, 2.0, 1.0)),
        accuracy=share(seen == refused, counted),
        partial=int(in_part.sum()),
        partial_counted_as=partial,
        partial_seen=share(seen, in_part),
    )
