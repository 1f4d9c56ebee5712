"""Estimated on the GPU, a subspace is that of the CPU and serves there too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loralign.guard import AlignmentSubspace, estimate_curvature, estimate_fisher
from loralign.guard.fisher_estimation import FisherEstimation
from tests.evaluation import models
from tests.gpu import both
from tests.training import guard_runs

pytestmark = pytest.mark.gpu
SKETCHED = {"method": "sketched", "oversampling": 8}


def _estimate(device: torch.device, **options: Any) -> AlignmentSubspace:
    settings = {"rank": 3, "target_modules": guard_runs.MODULES, "min_agreement": 0.0, "show_progress": False}
    return estimate_fisher(models.build("llama").to(device), guard_runs.completions(16), **{**settings, **options})


def _assert_same(found: AlignmentSubspace, expected: AlignmentSubspace, digits: float = 1e-4) -> None:
    assert list(found.layers) == list(expected.layers)
    assert found.info.fingerprint == expected.info.fingerprint
    for name, layer in expected.layers.items():
        own = found.layers[name]
        assert own.basis.device == own.eigenvalues.device == both.CPU
        largest = float(layer.eigenvalues[0])
        torch.testing.assert_close(own.eigenvalues, layer.eigenvalues, rtol=digits, atol=digits * largest)
        assert own.trace == pytest.approx(layer.trace, rel=digits)
        assert own.half_agreement == pytest.approx(layer.half_agreement, abs=1e-2)
        # Cosines of the principal angles: all directions are the same up to what rounding turns.
        cosines = torch.linalg.svdvals(own.basis.double().mT @ layer.basis.double())
        assert float(cosines.min()) > 1 - 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact", "response_tokens": 2},
        {**SKETCHED, "response_tokens": 2},
        {"method": "exact", "reduction": "sum"},
        {"method": "auto", "rank": None, "energy": 0.5},
    ],
    ids=["exact", "sketched", "sums", "energy"],
)
def test_subspaces_are_those_of_the_cpu(device: torch.device, options: dict[str, Any]) -> None:
    found, expected = _estimate(device, **options), _estimate(both.CPU, **options)
    _assert_same(found, expected)
    assert found.info.method == ("sketched" if options["method"] == "sketched" else "exact")


@pytest.mark.parametrize("method", ["exact", "sketched"])
def test_a_trained_adapter_is_measured_at_its_present_weights(device: torch.device, method: str) -> None:
    model = models.with_adapter(models.build("llama"), std=0.1)
    options: dict[str, Any] = {"rank": 3, "method": method, "min_agreement": 0.0, "show_progress": False}
    found, expected = (
        estimate_fisher(both.copied(model, place), guard_runs.completions(12), **options, oversampling=8)
        for place in (device, both.CPU)
    )
    _assert_same(found, expected)


def test_bfloat16_models_are_measured_with_float32_sums(device: torch.device) -> None:
    """The sums may read bfloat16 values at TF32's speed; what is told to torch for that is taken back."""
    precision = torch.backends.cuda.matmul.fp32_precision
    for options in ({"method": "exact"}, SKETCHED):
        found, expected = (
            estimate_fisher(
                models.build("llama", dtype=torch.bfloat16).to(place),
                guard_runs.completions(16),
                rank=2,
                target_modules=guard_runs.MODULES,
                min_agreement=0.0,
                show_progress=False,
                **options,  # type: ignore[arg-type]
            )
            for place in (device, both.CPU)
        )
        for name, layer in expected.layers.items():
            # Activations themselves differ by bfloat16's rounding.
            assert found.layers[name].trace == pytest.approx(layer.trace, rel=0.1)
        assert min(found.similarity(expected).values()) > 0.9
    assert torch.backends.cuda.matmul.fp32_precision == precision


def test_sampled_responses_are_drawn_on_the_device(device: torch.device) -> None:
    first, again = (_estimate(device, kind="sampled", response_tokens=2) for _ in range(2))
    _assert_same(again, first)
    assert first.info.kind == "sampled"


def test_an_interrupted_estimation_goes_on_where_it_stopped(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**SKETCHED, "batch_size": 4}
    expected = _estimate(device, **options)
    measure, calls = FisherEstimation._measure, []

    def failing(self: FisherEstimation, batch: Any) -> int:
        calls.append(batch.rows)
        if len(calls) == 7:  # in the second of two passes of four batches
            raise KeyboardInterrupt
        return measure(self, batch)

    monkeypatch.setattr(FisherEstimation, "_measure", failing)
    state = {"checkpoint": tmp_path / "state", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        _estimate(device, **options, **state)
    assert (tmp_path / "state").exists()
    _assert_same(_estimate(device, **options, **state), expected)
    assert len(calls) == 7 + 2


def test_a_saved_subspace_serves_on_the_other_device(tmp_path: Path, device: torch.device) -> None:
    for name, place, other in (("there", device, both.CPU), ("here", both.CPU, device)):
        saved = _estimate(place)
        saved.save(tmp_path / name)
        model = models.build("llama").to(other)
        loaded = AlignmentSubspace.load(tmp_path / name, model)
        _assert_same(loaded, saved, digits=1e-7)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_task_curvature_is_that_of_the_cpu(device: torch.device, kind: Any) -> None:
    model = models.with_adapter(models.build("llama"), std=0.1)
    found, expected = (
        estimate_curvature(both.copied(model, place), guard_runs.completions(8), kind=kind, show_progress=False)
        for place in (device, both.CPU)
    )
    for one, other in zip(found, expected, strict=True):
        for side in ("output", "input"):
            left, right = getattr(one, side), getattr(other, side)
            assert (left is None) == (right is None)
            if right is not None:
                assert left.diagonal.device == left.columns.device == both.CPU
                size = float(right.dense().abs().max())
                torch.testing.assert_close(left.dense(), right.dense(), rtol=1e-3, atol=1e-3 * size)
