"""``loralign diagnose --without-shared`` on a fresh adapter of a tiny model."""

from __future__ import annotations

import json
import math

import pytest

from tests.cli.conftest import assert_refused

OBJECTIVES = {"helpful", "honest", "harmless"}


def test_what_remains_without_shared_directions(loralign, model, data):
    words = ("diagnose", model, "--data", data, "--rank", "2", "--pairs", "6", "--json")
    plain = loralign(*words)
    assert plain.code == 0, plain.err
    assert "without_shared" not in json.loads(plain.out)
    result = loralign(*words, "--without-shared", "3")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    shared = found["without_shared"]
    assert shared["directions"] == 3
    layers = set(found["measurement"]["layer_attenuation"])
    for what in ("attenuation", "shared_energy"):
        assert set(shared[what]) == OBJECTIVES
        assert all(0 < value < 1 for value in shared[what].values())
        assert set(shared[f"layer_{what}"]) == layers
        for row in shared[f"layer_{what}"].values():
            assert set(row) == OBJECTIVES
    # The same gradients as without the option; only their sketch, and what of it is exact, is another.
    for name, value in json.loads(plain.out)["measurement"]["attenuation"].items():
        assert found["measurement"]["attenuation"][name] == pytest.approx(value, rel=0.2)
    assert len(found["sentences"]) > len(json.loads(plain.out)["sentences"])
    assert any("The 3 input directions per layer" in sentence for sentence in found["sentences"])
    matrix = shared["cosine"]["full"]
    assert len(matrix) == 3
    assert all(math.isclose(matrix[index][index], 1, rel_tol=1e-6) for index in range(3))


def test_the_tables(loralign, model, data):
    result = loralign("diagnose", model, "--data", data, "--rank", "2", "--pairs", "6", "--without-shared", "2")
    assert result.code == 0, result.err
    assert "Without the 2 input directions that all objectives share most" in " ".join(result.out.split())
    assert "Cosines of what remains" in result.out
    assert "reached γ without" in " ".join(result.out.split())


def test_too_many_directions_are_refused(loralign, model, data):
    words = ("diagnose", model, "--data", data, "--rank", "2", "--pairs", "6", "--without-shared")
    assert_refused(loralign(*words, "33"), "33 shared directions", "32 inputs and the sketch 32 columns", "use 0 to 31")
    assert_refused(loralign(*words, "-1"), "--without-shared")
