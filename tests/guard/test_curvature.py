from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor

from loralign.data.completions import Completion
from loralign.errors import AdapterError, ConfigError, DataError, NonFiniteError
from loralign.guard.curvature import estimate_curvature
from loralign.guard.penalties import GuardPenalty, PenaltyOptions
from loralign.guard.task_curvature import CurvatureFactor, TaskCurvature
from loralign.lora import lora_layers
from tests import zoo
from tests.guard.penalties.made import compare_with_dense, random_subspace
from tests.oracles import base_weight, require_base_gradients


def _samples(count: int = 5, seed: int = 0) -> list[Completion]:
    generator = torch.Generator().manual_seed(seed)
    lengths = [6 + 3 * (index % 3) for index in range(count)]
    ids = [torch.randint(3, zoo.VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Completion(one, prompt_length=2 + index % 3, row=index) for index, one in enumerate(ids)]


def _sample_gradients(model, samples) -> list[list[Tensor]]:
    """``G_s (m, n)`` per layer and sample, by one backward pass for each sample."""
    model.eval()
    require_base_gradients(model)
    weights = [base_weight(model, layer) for layer in lora_layers(model)]
    rows = []
    for sample in samples:
        ids = torch.tensor([sample.ids])
        log_probs = model(ids).logits[0, :-1].log_softmax(dim=-1)
        chosen = log_probs.gather(1, ids[0, 1:, None])[sample.prompt_length - 1 :]
        rows.append(torch.autograd.grad(-chosen.mean(), [weight for weight, _ in weights]))
    return [
        [row[index].mT if transposed else row[index] for row in rows] for index, (_, transposed) in enumerate(weights)
    ]


def _sides(gradients: list[list[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """``S_out`` and ``S_in`` of every layer at the scale that is documented."""
    outputs = [sum(G @ G.mT for G in layer) for layer in gradients]
    inputs = [sum(G.mT @ G for G in layer) for layer in gradients]
    scale = sum(float(one.diagonal().mean()) for one in outputs) / len(outputs)
    return [(out / scale, one / one.diagonal().mean()) for out, one in zip(outputs, inputs, strict=True)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_diagonal_is_that_of_the_dense_per_sample_gradients(architecture, batch_size):
    model, samples = zoo.lora_model(architecture), _samples()
    found = estimate_curvature(model, samples, batch_size=batch_size, show_progress=False)
    expected = _sides(_sample_gradients(model, samples))
    assert len(found) == len(expected)
    for one, (output, _) in zip(found, expected, strict=True):
        assert one.input is None
        assert one.output.columns.shape[1] == 0
        torch.testing.assert_close(one.output.diagonal.double(), output.diagonal(), rtol=1e-5, atol=1e-9)
    assert sum(float(one.output.diagonal.mean()) for one in found) / len(found) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_sides_are_whole_where_the_rank_allows(architecture):
    """More eigenpairs are asked for than any side has."""
    model, samples = zoo.lora_model(architecture), _samples()
    found = estimate_curvature(model, samples, kind="kronecker", rank=200, batch_size=2, show_progress=False)
    for one, (output, inputs) in zip(found, _sides(_sample_gradients(model, samples)), strict=True):
        for factor, expected in ((one.output, output), (one.input, inputs)):
            error = torch.linalg.matrix_norm(factor.dense().double() - expected)
            assert float(error / torch.linalg.matrix_norm(expected)) < 1e-6


def test_a_low_rank_keeps_the_leading_directions_and_the_exact_diagonal():
    model, samples = zoo.lora_model(), _samples()
    found = estimate_curvature(model, samples, kind="kronecker", rank=3, show_progress=False)
    for one, (output, inputs) in zip(found, _sides(_sample_gradients(model, samples)), strict=True):
        for factor, expected in ((one.output, output), (one.input, inputs)):
            assert factor.columns.shape[1] == 3
            assert bool((factor.diagonal >= 0).all())
            torch.testing.assert_close(factor.dense().double().diagonal(), expected.diagonal(), rtol=1e-5, atol=1e-8)
            leading = torch.linalg.eigvalsh(expected).flip(0)[:3]
            lengths = factor.columns.double().square().sum(dim=0)
            torch.testing.assert_close(lengths, leading, rtol=0.05, atol=1e-9)


def test_the_identity_is_the_diagonal_of_ones_and_that_a_kronecker_product():
    generator = torch.Generator().manual_seed(0)
    layers = lora_layers(zoo.lora_model())
    subspaces = [random_subspace(generator, *layer.shape, 4) for layer in layers]

    def ones(size: int) -> CurvatureFactor:
        return CurvatureFactor(torch.ones(size), torch.zeros(size, 0))

    curvature = [TaskCurvature(ones(m), ones(n)) for m, n in (layer.shape for layer in layers)]
    plain = compare_with_dense(layers, subspaces, curvature, PenaltyOptions())
    for form in ("diagonal", "kronecker"):
        curved = compare_with_dense(layers, subspaces, curvature, PenaltyOptions(task_curvature=form))
        assert curved.stability == pytest.approx(plain.stability)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_an_estimate_serves_the_penalty(kind):
    model = zoo.lora_model()
    layers = lora_layers(model)
    generator = torch.Generator().manual_seed(1)
    subspaces = [random_subspace(generator, *layer.shape, 4) for layer in layers]
    curvature = estimate_curvature(model, _samples(), kind=kind, rank=4, show_progress=False)
    compare_with_dense(layers, subspaces, curvature, PenaltyOptions(task_curvature=kind))
    if kind == "diagonal":
        with pytest.raises(ConfigError, match="no input side"):
            GuardPenalty(layers, subspaces, 1.0, PenaltyOptions(task_curvature="kronecker"), curvature)


def test_the_model_is_left_as_it_was_and_the_seed_decides():
    model = zoo.lora_model(dtype=torch.float32, lora_dropout=0.5).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = {name: (one.clone(), one.requires_grad) for name, one in model.named_parameters()}
    runs = [estimate_curvature(model, _samples(), kind="kronecker", rank=2, show_progress=False) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.output.columns, other.output.columns)
        assert torch.equal(one.input.diagonal, other.input.diagonal)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None or bool((parameter.grad == 1).all())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_processes_measure_their_share_and_agree(monkeypatch):
    """Two processes one after the other, the second adding the first's sums where a real group adds both."""
    model, samples = zoo.lora_model(), _samples()
    alone = estimate_curvature(model, samples, kind="kronecker", rank=4, batch_size=2, show_progress=False)
    sums: list[Tensor] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for process in (0, 1):
        first = iter(list(sums))

        def reduce(buffer: Tensor, process=process, first=first) -> None:
            sums.append(buffer.clone())
            if process == 1:
                buffer += next(first)

        monkeypatch.setattr(dist, "get_rank", lambda process=process: process)
        monkeypatch.setattr(dist, "all_reduce", reduce)
        together = estimate_curvature(model, samples, kind="kronecker", rank=4, batch_size=2, show_progress=False)
    for one, other in zip(alone, together, strict=True):
        for name in ("output", "input"):
            torch.testing.assert_close(getattr(one, name).dense(), getattr(other, name).dense(), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_estimated():
    model = zoo.lora_model()
    for wrong in ({"kind": "full"}, {"rank": 0}, {"batch_size": 0}, {"max_length": 0}):
        with pytest.raises(ConfigError, match=str(next(iter(wrong)))):
            estimate_curvature(model, _samples(), show_progress=False, **wrong)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        estimate_curvature(model, Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}), show_progress=False)
    with pytest.raises(DataError, match="no samples"):
        estimate_curvature(model, [], show_progress=False)
    with pytest.raises(DataError, match="sample 2: the response has no token within the first 4"):
        estimate_curvature(model, _samples(), max_length=4, show_progress=False)
    with pytest.raises(AdapterError, match="no LoRA layers"):
        estimate_curvature(zoo.llama(), _samples(), show_progress=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="sample"):
        estimate_curvature(model, _samples(), show_progress=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    with pytest.raises(DataError, match="no sample has any gradient"):
        estimate_curvature(model, _samples(), show_progress=False)
