"""What remains without the shared directions, in words."""

from __future__ import annotations

from typing import Any

import pytest

from loralign.report import shared_sentences

WHOLE = {"a": 0.8, "b": 0.8}


def _shared(a: float | None, b: float | None, **changes: Any) -> dict[str, Any]:
    energy = {"directions": 8, "shared_energy": {"a": 0.9, "b": 0.7}, "attenuation": {"a": a, "b": b}}
    return energy | {"cosine": {"full": [[1.0, -0.25], [-0.25, 1.0]]}} | changes


def test_all_is_said() -> None:
    sentences = shared_sentences(WHOLE, _shared(0.2, 0.3))
    assert sentences == [
        "The 8 input directions per layer that all objectives share most hold 90\u00a0% (a) and 70\u00a0% (b) of the "
        "gradients' energy.",
        "Without them γ is 0.200 (a) and 0.300 (b), much less than with them: LoRA's subspace reaches what all "
        "objectives share rather than what sets them apart.",
        "Of what remains LoRA reaches b best and a least.",
        "Between what remains the smallest cosine in the full space is −0.25 (a and b).",
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.59, ", much less than"),
        (0.61, ", less than"),
        (0.71, ", less than"),
        (0.73, ", about what it is"),
        (0.99, ", about what it is"),
        (1.0, ", more than"),
    ],
)
def test_thresholds(value: float, told: str) -> None:
    text = " ".join(shared_sentences(WHOLE, _shared(value, value)))
    assert told in text
    assert "best" not in text


def test_nothing_remains() -> None:
    nothing = _shared(0.0, 0.0, shared_energy={"a": 1.0, "b": 1.0})
    assert shared_sentences(WHOLE, nothing) == [
        "The 8 input directions per layer that all objectives share most hold 100\u00a0% (a) and 100\u00a0% (b) of the "
        "gradients' energy: nothing remains without them."
    ]
    one = " ".join(shared_sentences(WHOLE, _shared(0.0, 0.8, shared_energy={"a": 1.0, "b": 0.5})))
    assert "γ is 0.800 (b), about" in one


def test_one_objective_and_none() -> None:
    alone = {"directions": 1, "shared_energy": {"a": 0.5}, "attenuation": {"a": 0.8}}
    first, second = shared_sentences({"a": 0.8}, alone)
    assert "The 1 input direction per layer that all objectives share most holds" in first
    assert "a gradient's energy" in first
    assert "about" in second
    assert shared_sentences({"a": None}, alone | {"shared_energy": {"a": None}, "attenuation": {"a": None}}) == []


def test_cosines_keep_their_objectives_where_nothing_is_left_of_the_first() -> None:
    names = "abcd"
    cosine = [[1.0 if i == j else 0.1 * (i + j) for j in range(4)] for i in range(4)]
    shared = {
        "directions": 2,
        "shared_energy": dict(zip(names, (1.0, 0.5, 0.5, 0.5), strict=True)),
        "attenuation": dict(zip(names, (0.0, 0.8, 0.8, 0.8), strict=True)),
        "cosine": {"full": cosine},
    }
    assert "is 0.30 (b and c)" in shared_sentences(dict.fromkeys(names, 0.8), shared)[-1]
