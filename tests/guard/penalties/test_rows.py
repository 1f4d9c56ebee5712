"""The overlap in tiles and over a share of the rows."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.guard.penalties.overlap import RowDraw
from loralign.lora.base_weight import read_rows
from tests.guard.penalties.made import SCALE, random_problem

OVERLAP = PenaltyWeights(0, 0, 1)


def _penalty(problem, seed=0, **options) -> GuardPenalty:
    layers, subspaces, _ = problem
    return GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(alpha=1, **options), seed=seed)


def _flat(result) -> torch.Tensor:
    return torch.cat([one.flatten() for pair in result.gradients for one in pair])


@pytest.mark.parametrize("tile_rows", [1, 2, 5, 7, 11, 12, 13, 1000])
def test_the_size_of_tiles_does_not_matter(tile_rows):
    problem = random_problem(0)
    whole, tiled = (_penalty(problem, tile_rows=rows).evaluate(OVERLAP) for rows in (None, tile_rows))
    assert tiled.overlap == pytest.approx(whole.overlap, rel=1e-12)
    torch.testing.assert_close(_flat(tiled), _flat(whole), rtol=1e-10, atol=1e-14)


def test_every_choice_of_rows_averages_to_the_whole():
    """Unbiased: the mean over all subsets of the size drawn is the full value and gradient."""
    problem = random_problem(1, shapes=((5, 4),), rank=2, subspace_rank=2)
    whole = _penalty(problem).evaluate(OVERLAP)
    subsets = [torch.tensor(one) for one in itertools.combinations(range(5), 2)]
    values, gradients = [], []
    for subset in subsets:
        penalty = _penalty(problem, row_fraction=0.4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RowDraw, "rows", lambda self, layer, height, subset=subset: (subset, 2))
            result = penalty.evaluate(OVERLAP)
        values.append(result.overlap)
        gradients.append(_flat(result))
    assert sum(values) / len(values) == pytest.approx(whole.overlap, rel=1e-12)
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), _flat(whole))


def test_rows_are_drawn_without_replacement_anew_for_every_layer_and_draw():
    draws = [RowDraw(0.3, seed, number).rows(layer, 50) for seed, number, layer in itertools.product((0, 1), repeat=3)]
    assert all(count == 15 == len(set(rows.tolist())) for rows, count in draws)
    assert len({tuple(rows.tolist()) for rows, _ in draws}) == 8
    counts = sum(torch.bincount(RowDraw(0.3, 0, n).rows(0, 50)[0], minlength=50) for n in range(2000))
    # 600 expected of each row, standard deviation 20.5.
    assert int(counts.min()) > 500
    assert int(counts.max()) < 700


def test_a_tiny_fraction_still_has_a_row_and_a_whole_one_is_no_sample():
    assert RowDraw(1e-9, 0, 0).rows(0, 50)[1] == 1
    assert RowDraw(1.0, 0, 0).rows(0, 50) == (slice(0, 50), 50)


def test_draws_go_on_where_a_saved_state_ends():
    problem = random_problem(2)
    penalty = _penalty(problem, seed=5, row_fraction=0.5)
    first = [penalty.evaluate(OVERLAP).overlap for _ in range(2)]
    state = json.loads(json.dumps(penalty.state_dict()))
    expected = [penalty.evaluate(OVERLAP) for _ in range(3)]
    resumed = _penalty(problem, seed=0, row_fraction=0.5)
    resumed.load_state_dict(state)
    found = [resumed.evaluate(OVERLAP) for _ in range(3)]
    assert len({*first, *(one.overlap for one in expected)}) == 5
    for one, other in zip(found, expected, strict=True):
        assert one.overlap == other.overlap
        assert torch.equal(_flat(one), _flat(other))


def test_only_an_evaluation_that_draws_counts_as_one():
    problem = random_problem(3)
    for options, weights, draws in (
        ({"row_fraction": 0.5}, OVERLAP, 1),
        ({"row_fraction": 0.5}, PenaltyWeights(1, 1, 0), 0),
        ({}, OVERLAP, 0),
    ):
        penalty = _penalty(problem, **options)
        penalty.evaluate(weights)
        assert penalty.state_dict()["draw"] == draws


def test_no_base_weight_is_read_beyond_the_rows_drawn(monkeypatch):
    problem = random_problem(4, shapes=((40, 9),))
    seen = []

    def watched(layer, rows, out=None):
        seen.append(rows)
        return read_rows(layer, rows, out)

    monkeypatch.setattr("loralign.guard.penalties.overlap.read_rows", watched)
    _penalty(problem, row_fraction=0.25, tile_rows=4).evaluate(OVERLAP)
    assert sum(len(rows) for rows in seen) == 10
    assert all(len(rows) <= 4 for rows in seen)
