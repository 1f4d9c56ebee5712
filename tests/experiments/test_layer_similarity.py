from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loralign.errors import AdapterError
from loralign.experiments.layer_similarity import chance_similarities, update_similarities, update_similarity
from loralign.guard import AlignmentSubspace, LayerSubspace, SubspaceInfo
from loralign.guard.layer_subspace import Projection
from loralign.lora import canonical_name, lora_layers
from loralign.models.adapter_factors import SavedFactors, saved_factors
from tests import zoo
from tests.guard.dense import projector

ROWS, COLUMNS, RANK = 14, 9, 3


def drawn(seed: int, rank: int = RANK) -> SavedFactors:
    generator = torch.Generator().manual_seed(seed)
    return SavedFactors(torch.randn(rank, COLUMNS, generator=generator), torch.randn(ROWS, rank, generator=generator))


def directions(rank: int, seed: int = 0, rows: int = ROWS) -> LayerSubspace:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q.float()
    return LayerSubspace(basis, torch.arange(rank, 0, -1).float(), 100.0, COLUMNS)


@pytest.mark.parametrize("projection", ["hard", "soft"])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 5)])
def test_the_cosine_is_that_of_the_dense_projected_updates(projection: Projection, ranks: tuple[int, int]) -> None:
    first, second = drawn(1, ranks[0]), drawn(2, ranks[1])
    subspace = directions(5)
    outward = projector(subspace, ROWS, projection)
    parts = [outward @ one.B.double() @ one.A.double() for one in (first, second)]
    expected = float((parts[0] * parts[1]).sum() / (parts[0].norm() * parts[1].norm()))
    assert update_similarity(first, second, subspace, projection) == pytest.approx(expected, abs=1e-6)


def test_the_same_gradient_through_two_random_first_a_gives_updates_that_agree_by_r_over_n() -> None:
    """Why ΔW_A of two seeds is not held to a threshold: its first step is ``−η G AᵀA``, of a random A each."""
    rows, columns, rank = 40, 200, 10
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(rows, columns, generator=generator)
        downs = [torch.randn(rank, columns, generator=generator) for _ in range(2)]
        first, second = (SavedFactors(down, -gradient @ down.mT) for down in downs)
        found.append(update_similarity(first, second, directions(8, seed, rows)))
    assert sum(found) / len(found) == pytest.approx(rank / columns, rel=0.25)


@hypothesis_settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10), projection=st.sampled_from(["hard", "soft"]))
def test_an_update_written_otherwise_is_the_same_and_its_opposite_the_opposite(
    seed: int, factor: float, projection: Projection
) -> None:
    update, subspace = drawn(seed), directions(4, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    turn = torch.randn(RANK, RANK, generator=generator, dtype=torch.float64) + 4 * torch.eye(RANK)
    rewritten = SavedFactors(torch.linalg.inv(turn) @ update.A.double(), factor * update.B.double() @ turn)
    assert update_similarity(update, rewritten, subspace, projection) == pytest.approx(1, abs=1e-9)
    opposite = SavedFactors(rewritten.A, -rewritten.B)
    assert update_similarity(update, opposite, subspace, projection) == pytest.approx(-1, abs=1e-9)
    other = drawn(seed + 7)
    assert update_similarity(rewritten, other, subspace, projection) == pytest.approx(
        update_similarity(other, update, subspace, projection), abs=1e-9
    )


def test_what_was_taken_out_of_the_subspace_has_no_direction_there() -> None:
    subspace = directions(4)
    update = drawn(1)
    left = SavedFactors(update.A, update.B - subspace.basis @ (subspace.basis.mT @ update.B))
    assert update_similarity(left, update, subspace) is None
    assert update_similarity(SavedFactors(update.A, 0 * update.B), update, subspace) is None


def test_chance_is_what_random_subspaces_have() -> None:
    layers = {f"layer.{index}": directions(6, index, rows=48) for index in range(12)}
    given_one = AlignmentSubspace(layers, SubspaceInfo())
    smaller = given_one.truncated(3)
    for first, second, expected in (
        (given_one, given_one, 6 / 48),
        (given_one, smaller, 6 / 48),
        (smaller, smaller, 3 / 48),
    ):
        found = [value for seed in range(12) for value in first.similarity(second.random_like(seed)).values()]
        assert sum(found) / len(found) == pytest.approx(expected, rel=0.1)
        assert set(chance_similarities(first, second).values()) == {expected}


def test_factors_are_read_without_the_base(tmp_path: Path) -> None:
    model = zoo.lora_model()
    model.save_pretrained(str(tmp_path / "adapter"))
    factors = saved_factors(tmp_path / "adapter")
    layers = {canonical_name(layer.name): layer for layer in lora_layers(model)}
    assert set(factors) == set(layers)
    for name, layer in layers.items():
        torch.testing.assert_close(factors[name].A, layer.A.detach())
        torch.testing.assert_close(factors[name].B, layer.B.detach())
    name, layer = next(iter(layers.items()))
    subspace = AlignmentSubspace({name: directions(2, rows=layer.shape[0])}, SubspaceInfo())
    assert update_similarities(factors, factors, subspace) == {name: pytest.approx(1)}
    with pytest.raises(AdapterError, match="no such adapter directory"):
        saved_factors(tmp_path / "missing")
