"""From what was measured on pairs to scores by objective, and to paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from loralign.errors import ConfigError, DataError
from loralign.evaluation.bootstrap import Difference, Estimate, Sample, bootstrap_mean
from loralign.evaluation.measures import LOWER_IS_BETTER, WITHOUT_WORST, pair_measures
from loralign.evaluation.pairs import PairScores
from loralign.evaluation.scores import Kind, ObjectiveScores, Scores, Worst

Samples = Mapping[str, Sample]


def preference_scores(
    pair_scores: PairScores,
    objectives: Sequence[str] | None = None,
    *,
    beta: float = 0.1,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Scores:
    """Every measure for every objective, for all pairs, as macro average and for the worst objective.

    Args:
        pair_scores: of :func:`~loralign.evaluation.scoring.score_pairs`; its ``of_reference()`` gives the scores of the
            reference, which are also those before training. How ties count, and what stands for the reward where there
            is no reference, is said at :func:`~loralign.evaluation.measures.pair_measures`.
        objectives: names to report, in this order; by default all, in the order of their first pair. Pairs of other
            objectives are left out everywhere.
        beta: the β of DPO, positive.
        confidence: of the bootstrap intervals over pairs, between 0 and 1.
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap.

    Raises:
        ConfigError: ``beta``, ``confidence`` or ``resamples`` is out of range.
        DataError: an objective has no pair.
    """
    interval = _Interval(beta, confidence, resamples, seed)
    names = _named(pair_scores, objectives)
    return _assemble(
        "scores",
        {name: pair_measures(pair_scores.of_objectives([name]), beta) for name in names},
        pair_measures(pair_scores.of_objectives(names), beta),
        interval,
    )


def compare_scores(
    before: PairScores,
    after: PairScores,
    objectives: Sequence[str] | None = None,
    *,
    beta: float = 0.1,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Scores:
    """Paired differences, after minus before, of every measure that both have: the same pairs are drawn for both.

    Args:
        before: scores of the pairs under one model.
        after: scores of the same pairs, in the same order, under another.
        objectives: as for :func:`preference_scores`, and so the other arguments and errors.
        beta: as there.
        confidence: as there.
        resamples: as there.
        seed: as there.

    Raises:
        ConfigError: as there.
        DataError: as there, or the two were not measured on the same pairs.
    """
    interval = _Interval(beta, confidence, resamples, seed)
    same = before.objectives == after.objectives and np.array_equal(before.rows, after.rows)
    if not same or not np.array_equal(before.tokens, after.tokens):
        raise DataError(
            "before and after were not measured on the same pairs",
            place="compare_scores",
            fix="score both on the same data with the same tokenizer and max_length",
        )
    names = _named(after, objectives)
    return _assemble(
        "difference",
        {name: _differences(before.of_objectives([name]), after.of_objectives([name]), beta) for name in names},
        _differences(before.of_objectives(names), after.of_objectives(names), beta),
        interval,
    )


@dataclass(frozen=True)
class _Interval:
    """The settings of every estimate."""

    beta: float
    confidence: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        for option, right in (
            ("beta", self.beta > 0),
            ("confidence", 0 < self.confidence < 1),
            ("resamples", self.resamples >= 1),
        ):
            if not right:
                bound = "between 0 and 1" if option == "confidence" else "that is positive"
                raise ConfigError(f"{option} is {getattr(self, option)}", place=option, fix=f"give a number {bound}")

    def estimate(self, *samples: Sample) -> Estimate:
        return bootstrap_mean(samples, confidence=self.confidence, resamples=self.resamples, seed=self.seed)


def _differences(before: PairScores, after: PairScores, beta: float) -> Samples:
    old, new = pair_measures(before, beta), pair_measures(after, beta)
    return {measure: Difference(new[measure], old[measure]) for measure in new if measure in old}


def _named(pair_scores: PairScores, objectives: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(pair_scores.objectives))
    names = known if objectives is None else list(dict.fromkeys(objectives))
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise DataError(
            f"no pair belongs to {', '.join(map(repr, missing)) or 'any objective'}",
            place="objectives",
            fix=f"choose from {', '.join(map(repr, known))}" if known else "give at least one pair",
        )
    return names


def _assemble(kind: Kind, by_name: Mapping[str, Samples], pooled: Samples, interval: _Interval) -> Scores:
    """Estimate every measure for each objective, for all pairs, and across objectives."""
    objectives = {name: _estimates(samples, interval) for name, samples in by_name.items()}
    macro = {measure: interval.estimate(*(samples[measure] for samples in by_name.values())) for measure in pooled}
    worst = {measure: _worst(objectives, measure) for measure in pooled if measure not in WITHOUT_WORST}
    overall = _estimates(pooled, interval)
    return Scores(kind, **asdict(interval), objectives=objectives, overall=overall, macro=macro, worst=worst)


def _estimates(samples: Samples, interval: _Interval) -> ObjectiveScores:
    pairs = next(iter(samples.values())).size
    return ObjectiveScores(pairs, {measure: interval.estimate(sample) for measure, sample in samples.items()})


def _worst(objectives: Mapping[str, ObjectiveScores], measure: str) -> Worst:
    values = {name: scores.measures[measure] for name, scores in objectives.items()}
    name = (max if measure in LOWER_IS_BETTER else min)(values, key=lambda key: values[key].value)
    return Worst(name, values[name])
