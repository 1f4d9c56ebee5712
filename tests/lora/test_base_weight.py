from __future__ import annotations

import importlib.util

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loralign.errors import AdapterError
from loralign.lora import base_weight_rows, canonical_name, lora_layers
from loralign.lora.base_weight import read_rows
from tests import zoo

four_bit = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs loralign[quantization]")


def _four_bit_layer(shape, *, kind="nf4", nested=True, blocksize=64, dtype=torch.float32, storage=torch.uint8):
    """A LoRA layer on a 4-bit base and its whole weight, decoded by the definition of the format."""
    import bitsandbytes as bnb

    rows, columns = shape
    torch.manual_seed(rows * columns)
    linear = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.float32)
    options = {"quant_type": kind, "compress_statistics": nested, "blocksize": blocksize, "quant_storage": storage}
    values = torch.randn(rows, columns, dtype=dtype)
    linear.weight = bnb.nn.Params4bit(values, requires_grad=False, module=linear, **options)
    base = nn.Sequential(linear.to("cpu"))
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
    (layer,) = lora_layers(model)
    state = linear.weight.quant_state
    maxima = state.absmax
    if nested:
        maxima = bnb.functional.dequantize_blockwise(maxima, state.state2) + state.offset
    # bitsandbytes 0.50 itself decodes wrongly on a CPU where rows end inside of a block.
    packed = linear.weight.detach().flatten().view(torch.uint8)
    codes = state.code[torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()]
    whole = codes * maxima.float().repeat_interleave(blocksize)[: codes.numel()]
    if columns % blocksize == 0:
        assert torch.equal(bnb.functional.dequantize_4bit(linear.weight.data, state).flatten(), whole.to(dtype))
    return layer, whole.to(dtype).float().view(rows, columns)


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_weight_that_the_layer_applies(architecture, dtype):
    model = zoo.lora_model(architecture, dtype=dtype)
    for layer in lora_layers(model):
        height, width = layer.shape
        applied = layer.base.weight.mT if type(layer.base).__name__ == "Conv1D" else layer.base.weight
        x = torch.eye(width, dtype=dtype)
        with torch.no_grad():
            output = layer.base(x).mT
        if getattr(layer.base, "bias", None) is not None:
            output = output - layer.base.bias[:, None]
        for start, stop in ((0, height), (0, 1), (3, 7), (height - 2, height), (4, 4)):
            rows = base_weight_rows(layer, start, stop)
            assert rows.dtype == torch.float32
            assert rows.is_contiguous()
            assert torch.equal(rows, applied[start:stop].float())
            torch.testing.assert_close(rows, output[start:stop].float(), rtol=1e-2, atol=1e-2)


def test_rows_are_a_copy_also_where_the_weight_is_float32():
    (layer, *_) = lora_layers(zoo.lora_model(dtype=torch.float32))
    before = layer.base.weight.clone()
    base_weight_rows(layer, 0, 4).zero_()
    assert torch.equal(layer.base.weight, before)


def test_rows_go_where_they_are_asked_and_any_may_be_chosen():
    for architecture in ("llama", "gpt2"):
        (layer, *_) = lora_layers(zoo.lora_model(architecture))
        out = torch.empty(3, layer.shape[1], dtype=torch.float64)
        assert base_weight_rows(layer, 2, 5, out=out) is out
        assert torch.equal(out.float(), base_weight_rows(layer, 2, 5))
        chosen = torch.tensor([7, 0, 3])
        assert torch.equal(read_rows(layer, chosen), base_weight_rows(layer, 0, 8)[chosen])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 10**6)])
def test_rows_outside_of_the_weight(start, stop):
    (layer, *_) = lora_layers(zoo.lora_model())
    with pytest.raises(IndexError, match="rows"):
        base_weight_rows(layer, start, stop)


@four_bit
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (48, 96), (40, 50), (300, 64), (33, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_rows_equal_those_of_the_whole_dequantised_weight(kind, nested, rows, columns, dtype):
    """Rows that begin and end inside a block of values, and blocks that begin inside a block of blocks."""
    layer, whole = _four_bit_layer((rows, columns), kind=kind, nested=nested, dtype=dtype)
    for start, stop in ((0, rows), (0, 1), (1, 2), (5, 17), (rows - 3, rows), (rows - 1, rows), (7, 7)):
        assert torch.equal(base_weight_rows(layer, start, stop), whole[start:stop])
    chosen = torch.tensor([rows - 1, 0, 11, 12])
    assert torch.equal(read_rows(layer, chosen), whole[chosen])


@four_bit
@pytest.mark.parametrize("blocksize", [64, 128, 256])
def test_four_bit_blocks_of_any_size_and_storage(blocksize):
    for storage in (torch.uint8, torch.bfloat16):
        layer, whole = _four_bit_layer((32, 192), blocksize=blocksize, storage=storage)
        assert torch.equal(base_weight_rows(layer, 3, 20), whole[3:20])
        chosen = torch.tensor([31, 2])
        assert torch.equal(read_rows(layer, chosen), whole[chosen])


@four_bit
def test_only_the_rows_asked_are_dequantised(monkeypatch):
    import bitsandbytes.functional as functional

    layer, _ = _four_bit_layer((300, 64))
    sizes, original = [], functional.dequantize_4bit

    def watched(packed, state):
        sizes.append(packed.numel() * 2)
        return original(packed, state)

    monkeypatch.setattr(functional, "dequantize_4bit", watched)
    base_weight_rows(layer, 100, 110)
    assert sizes == [640]


@four_bit
def test_a_four_bit_weight_that_cannot_be_read():
    import bitsandbytes as bnb

    base = nn.Sequential(bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32))
    base.is_loaded_in_4bit = True
    (layer,) = lora_layers(get_peft_model(base, LoraConfig(r=4, target_modules=["0"])))
    with pytest.raises(AdapterError, match="not quantised yet"):
        base_weight_rows(layer, 0, 1)
    layer, _ = _four_bit_layer((64, 64))
    # What bitsandbytes does at the first inference on a CPU with bfloat16 instructions.
    layer.base.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(AdapterError, match="repacked"):
        base_weight_rows(layer, 0, 1)


def test_a_weight_stored_in_another_way_is_refused():
    (layer, *_) = lora_layers(zoo.lora_model())
    layer.base.weight = nn.Parameter(torch.zeros(layer.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match=r"the torch.int8 weight of Linear cannot be read.*alpha to 0"):
        base_weight_rows(layer, 0, 1)
    layer.base.weight = nn.Parameter(torch.zeros(0), requires_grad=False)
    with pytest.raises(AdapterError, match="absent on this process"):
        base_weight_rows(layer, 0, 1)


def test_canonical_names_are_the_same_with_and_without_peft():
    model = zoo.lora_model()
    names = [canonical_name(layer.name) for layer in lora_layers(model)]
    assert names[0] == "model.layers.0.self_attn.q_proj"
    base = dict(model.get_base_model().named_modules())
    for name in names:
        assert name in base
        assert canonical_name(name) == name
    assert canonical_name("base_model.model.base_model.model.x") == "base_model.model.x"
