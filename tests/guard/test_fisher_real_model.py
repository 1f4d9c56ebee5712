"""Sketched against exact Fisher matrices on SmolLM2-135M-Instruct, on bundled prompts with their responses."""

from __future__ import annotations

import warnings

import pytest
import torch

from loralign.data.alignment import load_alignment_data
from loralign.data.completions import tokenise_completions
from loralign.guard import estimate_fisher
from loralign.guard.layer_subspace import mean_squared_cosine
from loralign.models import load_model

SAMPLES, LEADING = 16, 32
OPTIONS = {
    # One layer of every shape, first and middle of the model: flat spectra and steep ones.
    "target_modules": r".*layers\.(0\.self_attn\.(q|k|o)|0\.mlp\.(gate|down)|14\.mlp\.(up|down))_proj",
    "rank": 64,
    "min_agreement": 0.0,
    "show_progress": False,
}
# Two passes over the data, the default, or one with as many columns as make up for the second.
ENOUGH = {"two passes": {}, "one pass": {"oversampling": 832, "passes": 1}}


@pytest.fixture(scope="module")
def setting():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = load_model()
    samples = tokenise_completions(load_alignment_data("builtin"), loaded.tokenizer, 256)
    chosen = [one for label in ("unsafe", "safe") for one in [s for s in samples if s.label == label][: SAMPLES // 2]]
    return loaded.model, chosen, estimate_fisher(loaded.model, chosen, method="exact", **OPTIONS)


@pytest.mark.realmodel
@pytest.mark.slow
@pytest.mark.parametrize("effort", ENOUGH)
def test_a_sketch_is_as_good_as_the_exact_matrix_for_the_leading_directions(setting, effort):
    model, samples, exact = setting
    sketched = estimate_fisher(model, samples, method="sketched", **OPTIONS, **ENOUGH[effort])
    wide = [name for name, layer in exact.layers.items() if layer.rows > sketched.info.sketch_width]
    assert wide
    for name in wide:
        want, got = exact.layers[name], sketched.layers[name]
        assert got.trace == pytest.approx(want.trace, rel=1e-5)
        assert mean_squared_cosine(got.basis[:, :LEADING], want.basis[:, :LEADING]) >= 0.99, name
        torch.testing.assert_close(got.eigenvalues[:LEADING], want.eigenvalues[:LEADING], rtol=0.02, atol=0)


@pytest.mark.realmodel
@pytest.mark.slow
def test_one_pass_finds_most_of_what_can_be_captured(setting):
    model, samples, exact = setting
    sketched = estimate_fisher(model, samples, **OPTIONS)
    assert sketched.info.method == "mixed"
    for name, want in exact.layers.items():
        got = sketched.layers[name]
        assert got.trace == pytest.approx(want.trace, rel=1e-5)
        # A Nyström approximation from below: what it says is captured is captured.
        assert (got.eigenvalues <= want.eigenvalues * 1.001).all()
        overlap = (want.basis.double().mT @ got.basis.double()).square().sum(dim=1)
        # Of the energy that the best 64 directions hold.
        share = float((want.eigenvalues.double() * overlap).sum() / want.eigenvalues.double().sum())
        assert share > 0.85, (name, share)
