"""Values and gradients of the penalty on layers that lie on the GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from loralign.guard import proximal_step, update_shares
from loralign.guard.penalties import GuardPenalty, PenaltyOptions, overlap
from loralign.guard.projection import project
from loralign.kernels import fused_is_available
from loralign.lora import LoraFactors
from tests.gpu import both
from tests.guard.penalties.made import SCALE, WEIGHTS, random_problem

pytestmark = pytest.mark.gpu
FORMS: dict[str, PenaltyOptions] = {
    "identity": PenaltyOptions(),
    "diagonal": PenaltyOptions(task_curvature="diagonal"),
    "kronecker": PenaltyOptions(task_curvature="kronecker"),
    "soft": PenaltyOptions(projection="soft", geodesic="frobenius"),
    "unweighted": PenaltyOptions(beta=0.0, alpha=1.0),
    "tiles": PenaltyOptions(tile_rows=37),
    "sampled rows": PenaltyOptions(row_fraction=0.4, tile_rows=16),
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "large": {"shapes": ((130, 300), (64, 96), (130, 300)), "rank": 16, "subspace_rank": 8},
}


def _placed(layers: list[LoraFactors], device: torch.device) -> list[LoraFactors]:
    moved = []
    for layer in layers:
        down, up, base = (copy.deepcopy(one).to(device) for one in (layer.down, layer.up, layer.base))
        moved.append(LoraFactors(layer.name, down, up, layer.scaling, base))
    return moved


@pytest.fixture(params=["fused", "plain"])
def _kernel(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlap by the fused kernel, which a GPU takes by itself, and by plain torch, as where there is no Triton."""
    if request.param == "plain":
        monkeypatch.setattr(overlap, "fused_is_available", lambda *place: False)
    elif not fused_is_available(device, torch.float32, 16):
        pytest.skip("the fused kernel needs a CUDA GPU and Triton")


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_penalties_are_those_of_the_cpu(device: torch.device, form: str, size: str) -> None:
    layers, subspaces, curvature = random_problem(0, dtype=torch.float32, **SIZES[size])
    options = FORMS[form]
    expected = GuardPenalty(layers, subspaces, SCALE, options, curvature).evaluate(WEIGHTS)
    own = _placed(layers, device)
    penalty = GuardPenalty(own, subspaces, SCALE, options, curvature)
    found = penalty.evaluate(WEIGHTS)
    for name in ("alignment", "stability", "overlap", "geodesic", "total"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
    torch.testing.assert_close(found.layer_energy, expected.layer_energy, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.layer_cosine, expected.layer_cosine, rtol=1e-4, atol=1e-6)
    assert found.gradients is not None
    assert expected.gradients is not None
    for layer, pair, wanted in zip(own, found.gradients, expected.gradients, strict=True):
        for factor, one, other in zip((layer.A, layer.B), pair, wanted, strict=True):
            assert one.device == factor.device
            # Where a product is within rounding of zero its sign, and so its subgradient, is either.
            assert float((one.cpu() - other).norm()) <= 1e-4 * float(other.norm())
    # Another draw of rows follows, so a fresh penalty draws the first again.
    added = GuardPenalty(own, subspaces, SCALE, options, curvature)
    added.backward(WEIGHTS, scale=2.0)
    for layer, (by_a, by_b) in zip(own, found.gradients, strict=True):
        torch.testing.assert_close(layer.A.grad, 2 * by_a, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.B.grad, 2 * by_b, rtol=1e-4, atol=1e-5)


def test_a_penalty_follows_its_layers_to_another_device(device: torch.device) -> None:
    layers, subspaces, curvature = random_problem(2, dtype=torch.float32)
    penalty = GuardPenalty(layers, subspaces, SCALE, PenaltyOptions(task_curvature="kronecker"), curvature)
    before = penalty.evaluate(WEIGHTS, gradients=False)
    for layer in layers:
        for module in (layer.down, layer.up, layer.base):
            module.to(device)
    after = penalty.evaluate(WEIGHTS, gradients=False)
    assert after.total == pytest.approx(before.total, rel=1e-5)


@pytest.mark.parametrize("projection", ["hard", "soft"])
def test_projection_and_proximal_step_are_those_of_the_cpu(device: torch.device, projection: Any) -> None:
    layers, subspaces, _ = random_problem(1, dtype=torch.float32, **SIZES["large"])
    for act in ("project", "proximal"):
        pair = []
        for place in (device, both.CPU):
            own = _placed(layers, place)
            if act == "project":
                project(own, subspaces, 0.7, projection)
            else:
                proximal_step(own, subspaces, SCALE, [0.3] * len(own), projection, [0.1] * len(own))
            pair.append((own, update_shares(own, subspaces)))
        (found, shares), (expected, wanted) = pair
        for one, other in zip(found, expected, strict=True):
            assert one.B.device == device
            torch.testing.assert_close(one.B.cpu(), other.B, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shares.cpu(), wanted.cpu(), rtol=1e-4, atol=1e-7)
