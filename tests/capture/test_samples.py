from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loralign.capture.samples import SampleCapture
from loralign.errors import AdapterError
from loralign.lora import lora_layers
from tests import oracles, zoo


def _captured(model, inputs, losses=zoo.sample_losses):
    """Every call of the consumer during one backward pass of the summed losses."""
    calls = []
    capture = SampleCapture(model, lambda index, x, g: calls.append((index, x, g)))
    losses(model, inputs).sum().backward()
    capture.close()
    return calls


def _products(calls):
    """``G_s (rows, m, n)`` by layer."""
    return {index: g.mT @ x for index, x, g in calls}


def _dense(model, inputs):
    oracles.require_base_gradients(model)
    losses = zoo.sample_losses(model, inputs)
    found = [oracles.full_gradients(model, losses, torch.arange(len(losses)), len(losses))]
    return [len(losses) * torch.stack(rows) for rows in found[0]]


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
@pytest.mark.parametrize("trained", [False, True], ids=["start", "trained"])
def test_gradients_of_every_sample_equal_dense_autograd(architecture, trained):
    model = zoo.lora_model(architecture, trained=trained)
    inputs = zoo.batch(rows=4)
    got = _products(_captured(model, inputs))
    want = _dense(model, inputs)
    assert len(got) == len(want) == len(lora_layers(model))
    for index, gradient in enumerate(want):
        torch.testing.assert_close(got[index], gradient, rtol=1e-8, atol=1e-12)


def test_layers_that_read_one_tensor_are_handed_one_tensor():
    model = zoo.lora_model("llama")
    names = [layer.name.rpartition(".")[2] for layer in lora_layers(model)]
    calls = _captured(model, zoo.batch())
    by_object: dict[int, list[str]] = {}
    for index, x, _ in calls:
        by_object.setdefault(id(x), []).append(names[index])
    groups = sorted(sorted(group) for group in by_object.values())
    assert groups == sorted(2 * [["gate_proj", "up_proj"], ["k_proj", "q_proj", "v_proj"], ["down_proj"], ["o_proj"]])


def test_a_bfloat16_base_gives_float32_and_still_shares_inputs():
    model = zoo.lora_model("llama")
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if "lora_" in name else torch.bfloat16)
    calls = _captured(model, zoo.batch())
    assert {tensor.dtype for _, x, g in calls for tensor in (x, g)} == {torch.float32}
    assert len({id(x) for _, x, _ in calls}) == 8
    for index, gradient in enumerate(_dense(zoo.lora_model("llama"), zoo.batch())):
        got = _products(calls)[index].double()
        assert float((got - gradient).norm() / gradient.norm()) < 0.05


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    inputs = zoo.batch()
    want = _products(_captured(zoo.lora_model(), inputs))
    model = zoo.checkpointed(zoo.lora_model(), reentrant=reentrant)
    calls = _captured(model, inputs)
    assert len({id(x) for _, x, _ in calls}) == 8
    got = _products(calls)
    for index, gradient in want.items():
        torch.testing.assert_close(got[index], gradient)


def test_dropout_of_the_branches_is_not_shared():
    model = zoo.lora_model(lora_dropout=0.5).train()
    calls = _captured(model, zoo.batch())
    assert len({id(x) for _, x, _ in calls}) == len(calls)
    for index, x, g in calls:
        layer = lora_layers(model)[index]
        want = layer.scaling * torch.einsum("stm,str->mr", g, x @ layer.A.detach().mT)
        torch.testing.assert_close(layer.B.grad, want)


def test_gradients_of_the_factors_are_those_without_a_capture():
    inputs = zoo.batch()
    plain, watched = zoo.lora_model(), zoo.lora_model()
    zoo.sample_losses(plain, inputs).sum().backward()
    _captured(watched, inputs)
    for want, got in zip(plain.parameters(), watched.parameters(), strict=True):
        assert (want.grad is None) == (got.grad is None)
        assert want.grad is None or torch.equal(want.grad, got.grad)


class _Twice(nn.Module):
    """Uses one layer twice, on different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5, bias=False)
        self.other = nn.Linear(5, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def test_a_layer_used_twice_is_handed_both_inputs():
    torch.manual_seed(0)
    model = get_peft_model(_Twice().double(), LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False))
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    calls = _captured(model, x, lambda m, inputs: m(inputs).square().sum(dim=(1, 2)))
    assert [index for index, _, _ in calls] == [0, 0]
    got = sum(g.mT @ one for _, one, g in calls)
    weight = model.get_submodule(lora_layers(model)[0].name).get_base_layer().weight.requires_grad_(True)
    for sample in range(3):
        (want,) = torch.autograd.grad(model(x[sample : sample + 1]).square().sum(), weight)
        torch.testing.assert_close(got[sample], want)


class _Flattening(nn.Module):
    """Sees the tokens of all samples as one list, as experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expert(x.flatten(0, 1)).view_as(x)


def test_tokens_that_belong_to_no_sample_are_an_error_before_any_backward():
    model = get_peft_model(_Flattening(), LoraConfig(r=2, target_modules=["expert"]))
    capture = SampleCapture(model, lambda *_: pytest.fail("consumed"))
    with pytest.raises(AdapterError, match=r"expert: .*\(12, 5\).*target_modules"):
        model(torch.randn(3, 4, 5))
    with torch.no_grad():
        model(torch.randn(3, 4, 5))
    capture.close()


def test_disabled_and_closed_captures_see_nothing():
    model = zoo.lora_model()

    def hooks():
        return {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}

    before = hooks()
    capture = SampleCapture(model, lambda *_: pytest.fail("consumed"))
    assert hooks() != before
    capture.enabled = False
    zoo.sample_losses(model, zoo.batch()).sum().backward()
    capture.enabled = True
    capture.close()
    assert hooks() == before
    zoo.sample_losses(model, zoo.batch()).sum().backward()
