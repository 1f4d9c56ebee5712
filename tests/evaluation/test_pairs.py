from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loralign.errors import OutputError, StateError
from loralign.evaluation import PairScores
from tests.evaluation.test_preference import FOUR, pair_scores


def equal(first: PairScores, second: PairScores) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(first)]
    return all(a is b if a is None or b is None else np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("scores", [pair_scores(), replace(FOUR, kl_policy_reference=None)])
def test_saved_scores_come_back_to_the_bit(scores: PairScores, tmp_path: Path) -> None:
    scores.save(tmp_path / "scores.safetensors")
    again = PairScores.load(tmp_path / "scores.safetensors")
    assert equal(scores, again)
    assert again.log_prob.dtype == np.float64
    assert [path.name for path in tmp_path.iterdir()] == ["scores.safetensors"]


def test_objectives_are_any_text(tmp_path: Path) -> None:
    scores = replace(FOUR, objectives=("é", '"', "\n", "a b"))
    scores.save(tmp_path / "s")
    assert PairScores.load(tmp_path / "s").objectives == scores.objectives


def test_selection_keeps_order_and_rows() -> None:
    part = pair_scores().of_objectives({"b"})
    assert set(part.objectives) == {"b"}
    assert part.rows.tolist() == list(range(1, 40, 3))
    assert np.array_equal(part.log_prob, pair_scores().log_prob[1::3])


def damaged(path: Path, kind: str) -> None:
    FOUR.save(path)
    arrays = load_file(path)
    metadata = {"format": "loralign.pair_scores", "version": "1", "objectives": '["a", "a", "b", "b"]'}
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(FOUR))
    elif kind == "version":
        save_file(arrays, path, metadata={**metadata, "version": "2"})
    elif kind == "foreign":
        save_file({"weight": np.zeros(3)}, path)
    elif kind == "extra":
        save_file({**arrays, "weight": np.zeros(3)}, path, metadata=metadata)
    elif kind == "shape":
        save_file({**arrays, "log_prob": arrays["log_prob"][:3]}, path, metadata=metadata)
    elif kind == "dtype":
        save_file({**arrays, "tokens": arrays["tokens"].astype(np.float64)}, path, metadata=metadata)
    elif kind == "objectives":
        save_file(arrays, path, metadata={**metadata, "objectives": "["})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("cut", "damaged"),
        ("pickle", "damaged"),
        ("version", "not pair scores of version 1"),
        ("foreign", "not pair scores"),
        ("extra", "damaged.*weight"),
        ("shape", r"log_prob is float64 \(3, 2\)"),
        ("dtype", "tokens is float64"),
        ("objectives", "damaged"),
    ],
)
def test_damaged_files_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    damaged(path, kind)
    with pytest.raises(StateError, match=message) as caught:
        PairScores.load(path)
    assert str(path) in str(caught.value)


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        FOUR.save(tmp_path / "file" / "scores")
