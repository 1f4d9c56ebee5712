from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.geometry import project_on_tangent_space, tangent_norm
from tests.oracles import accessible_part


def _problem(seed, rank_b=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A, B = draw(3, 9), draw(7, 3)
    B[:, rank_b:] = 0
    return A, B, draw


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), rank_b=st.integers(0, 3))
def test_projection_laws(seed, rank_b):
    A, B, draw = _problem(seed, rank_b)
    left, right = draw(7, 9), draw(7, 9)
    once = project_on_tangent_space(left, A, B)
    torch.testing.assert_close(once, accessible_part(left, A, B))
    torch.testing.assert_close(project_on_tangent_space(once, A, B), once)
    torch.testing.assert_close((once * right).sum(), (left * project_on_tangent_space(right, A, B)).sum())
    pythagoras = once.square().sum() + (left - once).square().sum()
    torch.testing.assert_close(pythagoras, left.square().sum())
    reachable = B @ draw(3, 9) + draw(7, 3) @ A
    torch.testing.assert_close(project_on_tangent_space(reachable, A, B), reachable)


def test_at_the_start_only_the_rows_of_a_count():
    A, _, draw = _problem(0)
    gradient = draw(7, 9)
    expected = gradient @ torch.linalg.pinv(A) @ A
    torch.testing.assert_close(project_on_tangent_space(gradient, A, torch.zeros(7, 3).double()), expected)


def test_fresh_factors_hold_the_same_share_of_every_gradient():
    """``E γ² = r / n`` at the start, whatever the gradient: a random row space knows nothing of the objectives."""
    generator = torch.Generator().manual_seed(0)
    rank, size, draws = 3, 24, 1500
    one_direction = torch.outer(torch.arange(1.0, 6.0), torch.eye(size)[0]).double()
    many = torch.randn(5, size, generator=generator, dtype=torch.float64)
    B = torch.zeros(5, rank).double()
    shares = torch.zeros(draws, 2, dtype=torch.float64)
    for row in shares:
        A = torch.randn(rank, size, generator=generator, dtype=torch.float64)
        for index, gradient in enumerate((one_direction, many)):
            row[index] = project_on_tangent_space(gradient, A, B).square().sum() / gradient.square().sum()
    error = shares.std(dim=0) / draws**0.5
    assert ((shares.mean(dim=0) - rank / size).abs() < 4 * error).all()
    # Four errors are little beside what a factor of n in place of √n, or r + 1 rows, would make.
    assert (4 * error < 0.1 * rank / size).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999))
def test_tangent_norm_equals_the_dense_norm(seed):
    A, B, draw = _problem(seed)
    step_a, step_b = draw(3, 9), draw(7, 3)
    dense = torch.linalg.matrix_norm(step_b @ A + B @ step_a)
    torch.testing.assert_close(tangent_norm(A, B, step_a, step_b), dense)
