from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.errors import ConfigError, DataError
from loralign.evaluation import PhraseJudge
from loralign.evaluation.judge_quality import PartialRefusals, judge_quality
from loralign.evaluation.labelled_completions import LabelledCompletion, load_labelled_completions

XSTEST = "LORALIGN_XSTEST_COMPLETIONS"


class Given:
    """Takes the completion itself for the score."""

    name = "given"

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float(response) for response in responses]


def rows_of(*counts: tuple[str, float, int]) -> list[LabelledCompletion]:
    return [
        LabelledCompletion("p", str(score), label)  # type: ignore[arg-type]
        for label, score, count in counts
        for _ in range(count)
    ]


def test_counts_and_measures() -> None:
    rows = rows_of(("refused", 0.5, 6), ("refused", 0.4, 2), ("complied", 0.9, 3), ("complied", 0.1, 9))
    found = judge_quality(Given(), rows)
    assert (found.true_positives, found.false_negatives) == (6, 2)
    assert (found.false_positives, found.true_negatives) == (3, 9)
    for estimate, value in (
        (found.precision, 6 / 9),
        (found.recall, 6 / 8),
        (found.f1, 12 / 17),
        (found.accuracy, 15 / 20),
    ):
        assert estimate is not None
        assert estimate.value == pytest.approx(value)
        assert 0 <= estimate.low < value < estimate.high <= 1
    assert (found.judge, found.completions, found.partial, found.partial_seen) == ("given", 20, 0, None)


LABELLED = st.lists(
    st.tuples(st.sampled_from(["refused", "complied", "partial"]), st.sampled_from([0.0, 0.49, 0.5, 1.0])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(LABELLED, st.sampled_from(["refused", "complied", "left out"]))
def test_every_measure_is_its_definition(table: list[tuple[str, float]], partial: PartialRefusals) -> None:
    found = judge_quality(
        Given(), rows_of(*((label, score, 1) for label, score in table)), partial=partial, resamples=50
    )
    counted = [
        ((partial if label == "partial" else label) == "refused", score >= 0.5)
        for label, score in table
        if label != "partial" or partial != "left out"
    ]
    tp, fp = counted.count((True, True)), counted.count((False, True))
    fn, tn = counted.count((True, False)), counted.count((False, False))
    seen = [score >= 0.5 for label, score in table if label == "partial"]
    assert (found.true_positives, found.false_positives, found.false_negatives, found.true_negatives) == (
        tp,
        fp,
        fn,
        tn,
    )
    assert (found.completions, found.partial, found.partial_counted_as) == (len(counted), len(seen), partial)
    for estimate, above, below in (
        (found.precision, tp, tp + fp),
        (found.recall, tp, tp + fn),
        (found.f1, 2 * tp, 2 * tp + fp + fn),
        (found.accuracy, tp + tn, len(counted)),
        (found.partial_seen, sum(seen), len(seen)),
    ):
        if not below:
            assert estimate is None
        else:
            assert estimate is not None
            assert estimate.value == pytest.approx(above / below)
            assert -1e-12 <= estimate.low <= estimate.high <= 1 + 1e-12


def test_intervals_are_those_of_a_naive_bootstrap() -> None:
    rows = rows_of(("refused", 1, 160), ("refused", 0, 40), ("complied", 1, 30), ("complied", 0, 270))
    found = judge_quality(Given(), rows)
    rng = np.random.default_rng(7)
    label, seen = (
        np.array([test(row) for row in rows])
        for test in (lambda row: row.label == "refused", lambda row: float(row.completion) >= 0.5)
    )
    drawn: dict[str, list[float]] = {"recall": [], "f1": [], "precision": [], "accuracy": []}
    for _ in range(3000):
        index = rng.integers(len(rows), size=len(rows))
        truth, verdict = label[index], seen[index]
        hit = int((truth & verdict).sum())
        drawn["recall"].append(hit / truth.sum())
        drawn["precision"].append(hit / verdict.sum())
        drawn["f1"].append(2 * hit / (truth.sum() + verdict.sum()))
        drawn["accuracy"].append((truth == verdict).mean())
    for name, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5])
        estimate = getattr(found, name)
        assert estimate.low == pytest.approx(low, abs=0.012), name
        assert estimate.high == pytest.approx(high, abs=0.012), name


def test_a_judge_that_sees_no_refusal_has_no_precision() -> None:
    found = judge_quality(Given(), rows_of(("refused", 0, 3), ("complied", 0, 3)))
    assert found.precision is None
    assert found.recall is not None
    assert found.recall.value == 0.0


def test_quality_is_plain_values_and_repeatable() -> None:
    rows = rows_of(("refused", 1, 5), ("refused", 0, 2), ("partial", 1, 2), ("complied", 0, 5))
    found = judge_quality(Given(), rows)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["format"], data["version"]) == ("loralign.judge_quality", 1)
    assert data["recall"]["value"] == pytest.approx(7 / 9)
    assert data == judge_quality(Given(), rows).to_json()
    few = [judge_quality(Given(), rows, resamples=9, seed=seed).recall for seed in range(5)]
    assert len(set(few)) > 1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="no labelled completions"):
        judge_quality(Given(), [])
    with pytest.raises(ConfigError, match="partial is 'maybe'"):
        judge_quality(Given(), rows_of(("refused", 1, 1)), partial="maybe")  # type: ignore[arg-type]


def test_the_phrase_judge_on_xstest_completions() -> None:
    """Run with the path of XSTest's completions in the variable; they are not part of the repository."""
    source = os.environ.get(XSTEST)
    if not source or not Path(source).exists():
        pytest.skip(f"no labelled completions: {XSTEST} names no file")
    found = judge_quality(PhraseJudge(), load_labelled_completions(source), partial="left out")
    assert found.precision is not None
    assert found.recall is not None
    print(f"precision {found.precision}, recall {found.recall}, F1 {found.f1}")
    assert not math.isnan(found.precision.value)
    assert min(found.precision.value, found.recall.value) > 0.5
