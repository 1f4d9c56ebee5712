"""The same Fisher matrices through curvlinops and nngeometry, where these define them.

Both give the Fisher matrix over ``vec(W)``; its trace over the inputs, ``Σ_j F[(i, j), (k, j)]``, is ``E[G Gᵀ]_ik``.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from nngeometry.backend import TorchHooksJacobianBackend
from nngeometry.layercollection import LayerCollection
from nngeometry.object import PMatDense
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loralign.capture.samples import SampleCapture
from loralign.data.completions import Completion
from loralign.guard import estimate_fisher
from loralign.guard.accumulator import FisherSums, TokenGrams
from tests import zoo

with warnings.catch_warnings():
    # A dependency of curvlinops compiles with torch.jit while it is imported.
    warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
    from curvlinops import EFLinearOperator


def _traced_over_inputs(matrix, m, n):
    return torch.einsum("ijkj->ik", matrix.reshape(m, n, m, n))


class _LastLogits(nn.Module):
    """Logits of the token that follows a prompt, as curvlinops wants a model: one output per sample."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits[:, -1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("layer", ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.k_proj"])
def test_empirical_fisher_of_curvlinops_on_a_transformer(layer):
    torch.manual_seed(0)
    model = zoo.llama().double().eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(3, zoo.VOCABULARY, (6, 5), generator=torch.Generator().manual_seed(1))
    samples = [Completion(row.tolist(), 4, row=index) for index, row in enumerate(ids)]
    found = estimate_fisher(model, samples, method="exact", rank=5, min_agreement=0, show_progress=False)

    weight = model.get_submodule(layer).weight
    operator = EFLinearOperator(
        _LastLogits(model),
        nn.CrossEntropyLoss(),
        [weight],
        [(ids[:, :-1], ids[:, -1])],
        num_data=len(ids),
        check_deterministic=False,
    )
    dense = operator @ torch.eye(weight.numel(), dtype=torch.float64)
    want = _traced_over_inputs(dense.detach(), *weight.shape)
    values = torch.linalg.eigvalsh(want).flip(0)
    own = found.layers[layer]
    assert own.trace == pytest.approx(float(want.trace()), rel=1e-6)
    torch.testing.assert_close(own.eigenvalues.double(), values[:5], rtol=1e-5, atol=1e-7 * float(values[0]))
    basis = own.basis.double()
    assert float((basis.mT @ want @ basis).trace()) == pytest.approx(float(values[:5].sum()), rel=1e-6)


class _Tokens(nn.Module):
    """One layer over the tokens of a sample, as a linear layer or as a convolution of width one, then a loss."""

    def __init__(self, weight, convolution):
        super().__init__()
        m, n = weight.shape
        self.convolution = convolution
        self.layer = nn.Conv1d(n, m, 1, bias=False) if convolution else nn.Linear(n, m, bias=False)
        self.layer.weight.data = weight[..., None].clone() if convolution else weight.clone()

    def forward(self, x):
        y = self.layer(x.mT).mT if self.convolution else self.layer(x)
        # Tokens mix within a sample, so that the gradient of a sample is no sum of those of its tokens alone.
        return torch.tanh(y).cumsum(dim=1).square().mean(dim=(1, 2))


def test_covariance_of_gradients_of_nngeometry_over_tokens():
    generator = torch.Generator().manual_seed(3)
    m, n, tokens = 7, 5, 6
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    x = torch.randn(9, tokens, n, generator=generator, dtype=torch.float64)

    peer = _Tokens(weight, convolution=True)
    backend = TorchHooksJacobianBackend(
        layer_collection=LayerCollection.from_model(peer), model=peer, function=lambda *d: peer(d[0])[:, None]
    )
    matrix = PMatDense(generator=backend, examples=DataLoader(TensorDataset(x), batch_size=9))
    want = _traced_over_inputs(matrix.to_torch(), m, n)

    model = get_peft_model(_Tokens(weight, convolution=False), LoraConfig(r=2, target_modules=["layer"]))
    sums = FisherSums(m, n, None, dtype=torch.float64, device=torch.device("cpu"))
    capture = SampleCapture(model.double(), lambda index, x, g: sums.add(x, g, 4, TokenGrams()))
    model(x).sum().backward()
    capture.close()
    torch.testing.assert_close(sums.total() / len(x), want)
    assert float(sums.squares.sum() / len(x)) == pytest.approx(float(want.trace()))
