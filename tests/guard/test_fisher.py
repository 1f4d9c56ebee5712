from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from loralign.data.completions import Completion, tokenise_completions
from loralign.errors import AdapterError, ConfigError, DataError, ModelError, NonFiniteError
from loralign.guard import estimate_fisher, fisher_estimation, selection
from loralign.lora import lora_layers
from tests import zoo
from tests.guard import fisher_oracles

CAUSAL = ("llama", "qwen3", "mixtral", "gpt2")


def _estimate(model, samples, **options):
    return estimate_fisher(model, samples, **{"min_agreement": 0.0, "show_progress": False, "batch_size": 4, **options})


def _check(subspace, dense, rtol=1e-6):
    """Eigenvalues, trace and captured energy against the dense matrices; subspaces through the energy they capture."""
    assert set(subspace.layers) == set(dense)
    for name, matrix in dense.items():
        layer = subspace.layers[name]
        values = torch.linalg.eigvalsh(matrix).flip(0)
        basis = layer.basis.double()
        torch.testing.assert_close(layer.eigenvalues.double(), values[: layer.rank], rtol=rtol, atol=rtol * values[0])
        torch.testing.assert_close(basis.mT @ basis, torch.eye(layer.rank).double(), rtol=0, atol=1e-5)
        assert layer.trace == pytest.approx(float(matrix.trace()), rel=rtol)
        captured = float((basis.mT @ matrix @ basis).trace())
        assert captured == pytest.approx(float(values[: layer.rank].sum()), rel=rtol)
        assert layer.energy == pytest.approx(captured / float(matrix.trace()), rel=2 * rtol)


def _dense(model, samples, reduction="mean"):
    gradients = fisher_oracles.sample_gradients(model, samples, reduction)
    return {name: fisher_oracles.fisher(rows) for name, rows in gradients.items()}


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("trained", [False, True], ids=["start", "trained"])
def test_exact_equals_dense_gradients_of_every_sample(architecture, trained):
    model, samples = zoo.lora_model(architecture, trained=trained), fisher_oracles.completions()
    _check(_estimate(model, samples, method="exact", rank=6), _dense(model, samples))


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_plain_model_is_measured_like_one_with_an_adapter_that_adds_nothing(architecture):
    samples = fisher_oracles.completions()
    dense = _dense(zoo.lora_model(architecture, trained=False), samples)
    torch.manual_seed(0)
    plain = zoo.BUILDERS[architecture]().double()
    _check(_estimate(plain, samples, method="exact", rank=6, target_modules=zoo.TARGETS[architecture]), dense)


def test_the_sum_over_tokens_is_offered():
    model, samples = zoo.lora_model(), fisher_oracles.completions()
    _check(_estimate(model, samples, method="exact", rank=6, reduction="sum"), _dense(model, samples, "sum"))


def test_a_sketch_as_wide_as_the_matrix_has_rank_is_the_matrix():
    model, samples = zoo.lora_model(), fisher_oracles.completions(count=2, longest=6)
    subspace = _estimate(model, samples, method="sketched", rank=4, oversampling=14)
    assert subspace.info.method == "mixed"
    assert subspace.info.sketch_width == 18
    _check(subspace, _dense(model, samples), rtol=2e-5)


@pytest.mark.parametrize("options", [{"method": "exact"}, {"method": "sketched", "oversampling": 4}])
@pytest.mark.parametrize("size", [{"energy": 0.7, "max_rank": 6}, {"rank": 4}])
@pytest.mark.parametrize("entries", [1000, 2**22])
def test_layers_decomposed_together_as_on_a_gpu_have_the_same_subspaces(options, size, entries, monkeypatch):
    model, samples = zoo.lora_model("mixtral"), fisher_oracles.completions(12)
    alone = _estimate(model, samples, **options, **size)
    monkeypatch.setattr(selection, "_batchable", lambda sums: True)
    monkeypatch.setattr(selection, "_BATCHED", entries)
    together = _estimate(model, samples, **options, **size)
    assert list(together.layers) == list(alone.layers)
    for name, layer in together.layers.items():
        expected = alone.layers[name]
        assert layer.basis.shape == expected.basis.shape
        torch.testing.assert_close(layer.eigenvalues, expected.eigenvalues, rtol=1e-5, atol=0)
        assert layer.trace == expected.trace
        # The halves are only computed in float32 where a layer is alone.
        assert layer.half_agreement == pytest.approx(expected.half_agreement, abs=1e-4)
        assert (layer.columns, layer.weights) == (expected.columns, expected.weights)
    assert min(alone.similarity(together).values()) > 1 - 1e-6


def test_passes_sharpen_a_sketch():
    model, samples = zoo.lora_model(), fisher_oracles.completions(24)
    exact = _estimate(model, samples, method="exact", rank=4)

    def error(passes):
        found = _estimate(model, samples, method="sketched", rank=4, oversampling=4, passes=passes)
        ratios = [found.layers[name].eigenvalues / exact.layers[name].eigenvalues for name in exact.layers]
        assert all((ratio < 1 + 1e-4).all() for ratio in ratios)
        assert [one.trace for one in found.layers.values()] == pytest.approx([o.trace for o in exact.layers.values()])
        return float(torch.cat([1 - ratio for ratio in ratios]).mean())

    errors = [error(passes) for passes in (1, 2, 4)]
    assert errors[0] > 0.02
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("method", ["exact", "sketched"])
def test_neither_batches_nor_padding_matter(method):
    model, samples = zoo.lora_model(), fisher_oracles.completions(7, longest=40)
    options = {"method": method, "rank": 3, "oversampling": 4}
    whole = _estimate(model, samples, batch_size=7, **options)
    for batch_size in (1, 3):
        parts = _estimate(model, samples, batch_size=batch_size, **options)
        for name, layer in whole.layers.items():
            torch.testing.assert_close(parts.layers[name].eigenvalues, layer.eigenvalues, rtol=1e-5, atol=0)
            assert parts.layers[name].trace == pytest.approx(layer.trace)
            assert parts.layers[name].half_agreement == pytest.approx(layer.half_agreement, abs=1e-4)
        assert min(whole.similarity(parts).values()) > 1 - 1e-6


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing_and_stays_on(reentrant, monkeypatch):
    samples = fisher_oracles.completions()
    want = _estimate(zoo.lora_model(), samples, method="exact", rank=5)
    model = zoo.checkpointed(zoo.lora_model(), reentrant=reentrant)
    recomputed = []
    block = model.get_submodule("base_model.model.model.layers.0")
    function = block._gradient_checkpointing_func
    monkeypatch.setattr(
        block, "_gradient_checkpointing_func", lambda *a, **k: (recomputed.append(1), function(*a, **k))[1]
    )
    got = _estimate(model, samples, method="exact", rank=5)
    assert recomputed
    for name, layer in want.layers.items():
        torch.testing.assert_close(got.layers[name].eigenvalues, layer.eigenvalues)
    assert model.training


def _state(model):
    modules = {name: (id(module), module.training, set(vars(module))) for name, module in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    return modules, hooks, parameters


@pytest.mark.parametrize("plain", [True, False])
def test_the_model_is_left_as_it_was_found(plain):
    model = zoo.llama() if plain else zoo.lora_model()
    model.train()
    model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("mlp"))).eval()
    (zoo.sample_losses(model, zoo.batch())).sum().backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    weights, state = copy.deepcopy(model.state_dict()), _state(model)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    _estimate(model, fisher_oracles.completions(), rank=2)
    assert torch.equal(torch.rand(4), expected)
    assert _state(model) == state
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        want = gradients[name]
        assert (parameter.grad is None) == (want is None)
        assert want is None or torch.equal(parameter.grad, want)


def test_a_failure_on_the_way_leaves_the_model_as_it_was_found():
    model = zoo.llama().train()
    state = _state(model)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.inf
    with pytest.raises(NonFiniteError, match="sample"):
        _estimate(model, fisher_oracles.completions())
    assert _state(model) == state
    model = zoo.llama().double()
    with torch.no_grad():
        # The loss is finite; squares of its gradients are not.
        model.model.layers[0].mlp.up_proj.weight.mul_(1e200)
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-200)
    with pytest.raises(NonFiniteError, match=r"layers\.0.*: the Fisher matrix is not finite"):
        _estimate(model, fisher_oracles.completions())
    model = zoo.llama().train()
    state = _state(model)
    with pytest.raises(AdapterError, match="no_such_module"):
        _estimate(model, fisher_oracles.completions(), target_modules=["no_such_module"])
    assert _state(model) == state


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_stacked_experts_are_refused_and_the_model_is_left_as_it_was_found():
    """PEFT wraps each of their parameters, one wrapper inside the other."""
    model = zoo.mixtral().train()
    state, expected = _state(model), model(**zoo.batch()).logits
    with pytest.raises(AdapterError, match=r"layers\.0\.mlp\.gate: .*experts and routers.*q_proj"):
        _estimate(model, fisher_oracles.completions())
    assert _state(model) == state
    assert torch.equal(model.eval()(**zoo.batch()).logits, expected)
    found = _estimate(model, fisher_oracles.completions(), rank=2, target_modules=["q_proj"])
    assert len(found.layers) == 2


@pytest.mark.parametrize("place", ["ModelSums", "layer_identity"])
def test_a_failure_before_the_first_batch_leaves_no_hooks(place, monkeypatch):
    model = zoo.lora_model()
    state = _state(model)

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(fisher_estimation, place, fail)
    with pytest.raises(MemoryError):
        _estimate(model, fisher_oracles.completions())
    assert _state(model) == state
    zoo.sample_losses(model, zoo.batch()).sum().backward()


def test_the_rank_follows_the_energy_within_its_bounds():
    model, samples = zoo.lora_model(), fisher_oracles.completions(12)
    subspace = _estimate(model, samples, energy=0.7, min_rank=2, max_rank=9)
    assert len({layer.rank for layer in subspace.layers.values()}) > 1
    for name, layer in subspace.layers.items():
        curve = subspace.energy_curve(name)
        assert 2 <= layer.rank <= 9
        assert layer.rank == 9 or layer.energy >= 0.7
        assert layer.rank == 2 or curve[-2] < 0.7
        assert float(curve[-1]) == pytest.approx(layer.energy)
    assert subspace.info.energy == 0.7
    assert _estimate(model, samples, rank=3).info.energy is None


def test_the_halves_have_the_same_mix_of_labels_and_their_agreement_is_known():
    model, samples = zoo.lora_model(), fisher_oracles.completions(3)
    # The halves hold the same samples, so they agree completely.
    same = [Completion(one.ids, one.prompt_length, label=str(row)) for row, one in enumerate(samples) for _ in (0, 1)]
    twice = _estimate(model, same, method="exact", rank=3)
    assert twice.info.half_agreement == pytest.approx(1.0, abs=1e-5)
    for seed in range(4):
        other = _estimate(model, fisher_oracles.completions(20), method="exact", rank=3, seed=seed)
        agreements = [layer.half_agreement for layer in other.layers.values()]
        assert all(0 < agreement < 1 for agreement in agreements)
        assert other.info.half_agreement == pytest.approx(sum(agreements) / len(agreements))


def test_too_few_samples_are_told_with_their_number_and_agreement():
    model, samples = zoo.lora_model(), fisher_oracles.completions(2, longest=5)
    with pytest.raises(DataError, match=r"2 samples, whose halves agree to 0\.\d\d .*support \d+ of the 20 directions"):
        _estimate(model, samples, rank=20)
    with pytest.raises(DataError, match=r"12 samples, whose halves agree to 0\.\d\d .*min_agreement 0.99"):
        _estimate(model, fisher_oracles.completions(12), rank=6, min_agreement=0.99)
    with pytest.raises(DataError, match="1 samples are too few"):
        _estimate(model, samples[:1])


def test_a_layer_without_gradient_is_named():
    # With a single token before it, a response depends on no query.
    samples = [Completion([3 + row, 7], 1, row=row) for row in range(8)]
    with pytest.raises(DataError, match=r"layers\.0\.self_attn\.q_proj: no gradient reaches the layer"):
        _estimate(zoo.lora_model(), samples, min_rank=1)
    model = zoo.lora_model(target_modules=["v_proj"])
    assert _estimate(model, samples, method="exact", rank=1).info.tokens == 8


def test_wrong_input_is_named():
    model, samples = zoo.lora_model(), fisher_oracles.completions()
    for options, match in (
        ({"kind": "true"}, "kind 'true'"),
        ({"method": "fast"}, "method 'fast'"),
        ({"reduction": "none"}, "reduction 'none'"),
        ({"energy": 1.5}, "energy is 1.5"),
        ({"min_rank": 9, "max_rank": 8}, "min_rank is 9"),
        ({"rank": 0}, "rank is 0"),
        ({"passes": 0}, "passes is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            _estimate(model, samples, **options)
    with pytest.raises(ConfigError, match="tokenizer"):
        _estimate(model, Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}))
    with pytest.raises(DataError, match="sample 0: the response has no token within the first 4"):
        _estimate(model, [Completion([3, 4, 5, 6, 7], 4, row=0)] * 2, max_length=4)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is not a causal language model"):
        _estimate(zoo.t5(), samples)
    with pytest.raises(ModelError, match="Linear"):
        _estimate(torch.nn.Linear(2, 2), samples)


def test_long_samples_are_cut_at_the_end():
    model, samples = zoo.lora_model(), fisher_oracles.completions()
    short = [Completion(one.ids[:7], min(one.prompt_length, 5), row=one.row) for one in samples]
    long = [Completion(one.ids + [9] * 5, one.prompt_length, row=one.row) for one in short]
    cut = [Completion(one.ids[:7], one.prompt_length, row=one.row) for one in long]
    want = _estimate(model, cut, rank=3)
    got = _estimate(model, long, rank=3, max_length=7)
    assert got.info.data_fingerprint == want.info.data_fingerprint
    assert got.info.tokens == want.info.tokens == sum(len(one.ids) - one.prompt_length for one in cut)
    for name, layer in want.layers.items():
        assert torch.equal(got.layers[name].basis, layer.basis)


def test_the_opening_of_a_response_alone_can_count():
    model, samples = zoo.lora_model(), fisher_oracles.completions()
    cut = [Completion(one.ids[: max(one.prompt_length, 1) + 2], one.prompt_length, row=one.row) for one in samples]
    assert any(len(one.ids) < len(whole.ids) for one, whole in zip(cut, samples, strict=True))
    want = _estimate(model, cut, rank=3)
    got = _estimate(model, samples, rank=3, response_tokens=2)
    assert got.info.response_tokens == 2
    assert want.info.response_tokens is None
    assert got.info.tokens == want.info.tokens <= 2 * len(samples)
    for name, layer in want.layers.items():
        assert torch.equal(got.layers[name].basis, layer.basis)
    with pytest.raises(ConfigError, match="response_tokens is 0"):
        _estimate(model, samples, response_tokens=0)


def test_a_dataset_is_tokenised():
    rows = {"prompt": ["ab", "bcd", "c", "dd"], "completion": ["ba", "c", "ddab", "a"], "label": ["unsafe", "safe"] * 2}
    tokenizer = _letters()
    model = zoo.lora_model()
    found = _estimate(model, Dataset.from_dict(rows), tokenizer=tokenizer, rank=2)
    samples = tokenise_completions(Dataset.from_dict(rows), tokenizer)
    assert found.info.tokens == 8 + 4
    assert found.info.data_fingerprint == _estimate(model, samples, rank=2).info.data_fingerprint


def _letters():
    """A tokenizer of single letters."""
    backend = Tokenizer(WordLevel({"<pad>": 0, "<end>": 2, "a": 3, "b": 4, "c": 5, "d": 6}))
    backend.pre_tokenizer = Split("", "isolated")
    backend.add_special_tokens(["<pad>", "<end>"])
    special = {"eos_token": "<end>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_a_quantised_base_is_measured():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = zoo.LlamaForCausalLM(zoo.LlamaConfig(**{**zoo._SIZES, "hidden_size": 64, "intermediate_size": 128}))
    dense = copy.deepcopy(model)
    for name in [name for name, _ in model.named_modules() if name.endswith("_proj")]:
        module, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        quantised = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
        quantised.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, module=quantised)
        setattr(parent, name.rpartition(".")[2], quantised.to("cpu"))
        weight = quantised.weight
        dense.get_submodule(name).weight.data = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    model.is_loaded_in_4bit = True
    samples = fisher_oracles.completions()
    want, got = (_estimate(one, samples, method="exact", rank=3) for one in (dense, model))
    assert {layer.weights for layer in got.layers.values()} == {None}
    for name, layer in want.layers.items():
        torch.testing.assert_close(got.layers[name].eigenvalues, layer.eigenvalues, rtol=1e-2, atol=0)
        assert got.layers[name].columns == layer.columns
    assert type(model.get_submodule("model.layers.0.mlp.up_proj")).__name__ == "Linear4bit"


def test_all_linear_layers_but_the_head_are_covered_by_default():
    subspace = _estimate(zoo.llama(), fisher_oracles.completions(), rank=2)
    names = {f"model.layers.{index}.{part}" for index in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert names < set(subspace.layers)
    assert len(subspace.layers) == 14
    assert subspace.match(lora_layers(zoo.lora_model("llama")))[0] is not None
