from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from loralign.data.completions import Completion
from loralign.errors import DataError, ModelError, NonFiniteError, StateError
from loralign.guard.head import OutputHead
from loralign.guard.probe import ProbeSet, _divergence
from tests import zoo
from tests.evaluation import models

LENGTHS = ((9, 4), (5, 12), (1, 1), (30, 17), (0, 6), (12, 3), (8, 8))
# The last three do something to their logits after the output embedding.
ARCHITECTURES = ("llama", "qwen3", "gpt2", "gemma2", "granite", "cohere")
# Gemma normalises in float32 whatever its weights are.
_RELATIVE = {"gemma2": 1e-6}


def samples(lengths: tuple[tuple[int, int], ...] = LENGTHS, vocabulary: int = 90) -> list[Completion]:
    generator = torch.Generator().manual_seed(3)
    return [
        Completion(torch.randint(3, vocabulary, (prompt + response,), generator=generator).tolist(), prompt)
        for prompt, response in lengths
    ]


def dense(start: torch.nn.Module, now: torch.nn.Module, completion: Completion) -> tuple[float, float, float]:
    """KL, lost log-probability and entropy of one sample: no padding, whole logits, float64."""

    def log_probs(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([completion.ids])).logits[0, :-1]
        return logits.double().log_softmax(-1)[max(completion.prompt_length, 1) - 1 :]

    before, after = log_probs(start.eval()), log_probs(now.eval())
    labels = torch.tensor(completion.ids[max(completion.prompt_length, 1) :])[:, None]
    return (
        (before.exp() * (before - after)).sum(-1).mean().item(),
        (before - after).gather(1, labels).mean().item(),
        -(after.exp() * after).sum(-1).mean().item(),
    )


def adapted(architecture: str, dtype: torch.dtype = torch.float32, std: float = 0.0) -> PeftModel:
    base = models.build(architecture, dtype=dtype)
    return models.with_adapter(base, std=std, fan_in_fan_out=architecture == "gpt2").to(dtype)


def check_against_dense(probe: ProbeSet, start: torch.nn.Module, model: Any) -> None:
    rel = _RELATIVE.get(model.config.model_type, 1e-9)
    drift = probe.measure(model)
    now = copy.deepcopy(model)
    kl, lost, entropy = zip(*(dense(start, now, completion) for completion in probe.completions), strict=True)
    assert drift.per_sample_kl.tolist() == pytest.approx(list(kl), rel=rel)
    assert drift.per_sample_lost.tolist() == pytest.approx(list(lost), rel=rel, abs=rel)
    assert drift.kl == pytest.approx(sum(kl) / len(kl), rel=rel)
    assert drift.logprob_lost == pytest.approx(sum(lost) / len(lost), rel=rel, abs=rel)
    assert drift.entropy == pytest.approx(sum(entropy) / len(entropy), rel=rel)
    assert drift.kl > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drift_equals_the_dense_formulas(architecture: str) -> None:
    model = adapted(architecture, torch.float64)
    start = copy.deepcopy(model)
    probe = ProbeSet(samples(), batch_size=3)
    probe.cache(model)
    models.perturb(model, "default", 0.1, seed=5)
    check_against_dense(probe, start, model)
    before = [dense(start, start, completion)[2] for completion in probe.completions]
    assert probe.start_entropy == pytest.approx(sum(before) / len(before), rel=1e-6)


def test_only_the_first_response_tokens_count_if_so_asked() -> None:
    model = adapted("llama", torch.float64)
    start = copy.deepcopy(model)
    probe = ProbeSet(samples(), response_tokens=2)
    probe.cache(model)
    models.perturb(model, "default", 0.1, seed=5)
    wanted = [min(one.response_length, 2) for one in samples()]
    assert [one.response_length for one in probe.completions] == wanted
    check_against_dense(probe, start, model)
    whole = ProbeSet(samples())
    whole.cache(start)
    assert whole.measure(model).kl != pytest.approx(probe.measure(model).kl, rel=1e-3)
    with pytest.raises(DataError, match="0 response tokens"):
        ProbeSet(samples(), response_tokens=0)


def test_experts_are_routed_as_in_the_dense_formulas() -> None:
    model = zoo.lora_model("mixtral", trained=False)
    start = copy.deepcopy(model)
    probe = ProbeSet(samples())
    probe.cache(model)
    models.perturb(model, "default", 0.3, seed=5)
    check_against_dense(probe, start, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_has_not_changed_has_drifted_exactly_nothing(architecture: str, dtype: torch.dtype) -> None:
    model = adapted(architecture, dtype)
    probe = ProbeSet(samples(), batch_size=4)
    probe.cache(model)
    for _ in range(2):
        drift = probe.measure(model)
        assert (drift.kl, drift.logprob_lost) == (0.0, 0.0)
        assert not drift.per_sample_kl.any()
        assert drift.entropy == probe.start_entropy
    with model.disable_adapter():
        assert probe.measure(model).kl == 0.0


def test_a_trained_adapter_can_be_the_start_and_the_disabled_one_too() -> None:
    model = adapted("llama", std=0.2)
    probe = ProbeSet(samples())
    probe.cache(model)
    assert probe.measure(model).kl == 0.0
    with model.disable_adapter():
        reverse = probe.measure(model).kl
        probe.cache(model)
    assert reverse > 0.01
    assert probe.measure(model).kl > 0.01
    with model.disable_adapter():
        assert probe.measure(model).kl == 0.0


def _perturbed(model: torch.nn.Module, wanted: Callable[[str], bool]) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if wanted(name):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["lora", "modules_to_save"],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_an_adapted_output_embedding_is_kept_as_it_was(architecture: str, config: dict[str, Any]) -> None:
    base = models.build(architecture, dtype=torch.float64)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.config.tie_word_embeddings = False
    model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **config), autocast_adapter_dtype=False)
    start = copy.deepcopy(model)
    probe = ProbeSet(samples(), batch_size=3)
    # Hooks on the output embedding may hold the whole model, and must not be copied with it.
    calls: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(id(model)))
    probe.cache(model)
    assert probe.measure(model).kl == 0.0
    _perturbed(model, lambda name: "lora_B" in name or "modules_to_save" in name)
    check_against_dense(probe, start, model)
    # Cached while the adapter is switched off, and measured with it.
    with model.disable_adapter():
        probe.cache(model)
        assert probe.measure(model).kl == 0.0
    check_against_dense(probe, start, model)


def test_a_copy_of_the_output_embedding_shares_what_is_frozen() -> None:
    base = models.build("llama")
    assert OutputHead(base.requires_grad_(False)).copy_if_adaptable() is None
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    copied: Any = OutputHead(model).copy_if_adaptable()
    assert copied.base_layer.weight is base.lm_head.base_layer.weight
    assert copied.lora_B["default"].weight is not base.lm_head.lora_B["default"].weight


@pytest.mark.parametrize("architecture", ["llama", "granite"])
def test_a_plain_model_that_is_trained_whole(architecture: str) -> None:
    model = models.build(architecture, dtype=torch.float64)
    start = copy.deepcopy(model)
    probe = ProbeSet(samples(), batch_size=2)
    probe.cache(model)
    assert probe.measure(model).kl == 0.0
    _perturbed(model, lambda name: True)
    check_against_dense(probe, start, model)


def test_measuring_leaves_no_trace() -> None:
    model = adapted("llama", std=0.1).train()
    model.base_model.model.model.layers[0].mlp.eval()
    flags = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    probe = ProbeSet(samples())
    probe.cache(model)
    first = probe.measure(model)
    # Dropout of 0.1 is in the adapter, and does not act.
    assert first.kl == 0.0
    assert torch.equal(torch.get_rng_state(), random)
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(t.requires_grad for t in (first.per_sample_kl, first.per_sample_lost))


def test_flags_and_hooks_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build("llama").train()
    probe = ProbeSet(samples())

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model.layers[1], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        probe.cache(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_samples_do_not_depend_on_their_batch_or_padding() -> None:
    model = adapted("qwen3", torch.float64)
    probes = [ProbeSet(samples(), batch_size=size, pad_id=pad) for size, pad in ((1, 0), (3, 7), (16, 2))]
    for probe in probes:
        probe.cache(model)
    models.perturb(model, "default", 0.1, seed=5)
    alone, *others = [probe.measure(model) for probe in probes]
    for other in others:
        torch.testing.assert_close(other.per_sample_kl, alone.per_sample_kl, rtol=1e-9, atol=0)
        torch.testing.assert_close(other.per_sample_lost, alone.per_sample_lost, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_logits_are_formed_a_few_hundred_tokens_at_a_time(architecture: str) -> None:
    model = adapted(architecture)
    probe = ProbeSet(samples(((10, 60),) * 20))
    tokens = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: tokens.append(output.shape[:-1].numel()))
    probe.cache(model)
    probe.measure(model)
    assert max(tokens) == 512
    assert sum(tokens) >= 3 * 20 * 60


def test_the_models_own_limit_of_positions_is_kept() -> None:
    model = models.build("gpt2")
    probe = ProbeSet(samples(((150, 45),)))
    probe.cache(model)
    assert probe.measure(model).kl == 0.0


@given(st.integers(0, 2**31), st.floats(0.0, 30.0))
def test_divergence_is_never_negative_and_zero_for_equal_logits(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = 10 * torch.randn(4, 50, generator=generator)
    after = before + scale * torch.randn(4, 50, generator=generator)
    assert not _divergence(before.log_softmax(-1), before.log_softmax(-1)).any()
    found = _divergence(before.log_softmax(-1), after.log_softmax(-1))
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    torch.testing.assert_close(found.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-6)
    assert (found >= 0).all()


def test_small_drift_is_not_lost_in_rounding() -> None:
    """A change of 1e-3 in the logits costs some 5e-7 nats, less than float32's rounding of a log-probability."""
    generator = torch.Generator().manual_seed(0)
    before = 3 * torch.randn(64, 5000, generator=generator)
    after = before + 1e-3 * torch.randn(64, 5000, generator=generator)
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    found = _divergence(before.log_softmax(-1), after.log_softmax(-1))
    torch.testing.assert_close(found.double(), expected, rtol=0.2, atol=0)


def test_a_probe_without_samples_or_responses_is_refused() -> None:
    with pytest.raises(DataError, match="there are no samples"):
        ProbeSet([])
    with pytest.raises(DataError, match="probe sample 1: the response has no token"):
        ProbeSet([Completion([3, 4], 1), Completion([3, 4], 2)])
    with pytest.raises(DataError, match="probe sample 0"):
        ProbeSet([Completion([3], 0)])


def test_measuring_before_caching_is_refused() -> None:
    with pytest.raises(StateError, match="call cache"):
        ProbeSet(samples()).measure(models.build("llama"))
    with pytest.raises(StateError, match="call cache"):
        _ = ProbeSet(samples()).start_entropy


def test_a_model_with_another_output_embedding_is_refused() -> None:
    probe = ProbeSet(samples())
    probe.cache(models.build("llama").requires_grad_(False))
    with pytest.raises(StateError, match="nats away from what they were"):
        probe.measure(models.build("llama", seed=1).requires_grad_(False))


def test_models_that_cannot_be_probed_are_refused() -> None:
    with pytest.raises(ModelError, match="encoder with a decoder"):
        ProbeSet(samples()).cache(zoo.t5())
    with pytest.raises(ModelError, match="no output embedding"):
        ProbeSet(samples()).cache(models.build("llama").model)


def test_weights_that_are_not_finite_are_named() -> None:
    model = adapted("llama")
    probe = ProbeSet(samples())
    probe.cache(model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name)[0] = math.nan
    with pytest.raises(NonFiniteError, match="divergence of 7 of 7 samples is not finite"):
        probe.measure(model)
    with pytest.raises(NonFiniteError, match="entropy"):
        probe.cache(model)


@pytest.mark.realmodel
def test_a_real_model_drifts_only_when_it_changes() -> None:
    from loralign.models import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = load_model()
    torch.manual_seed(0)
    model = get_peft_model(loaded.model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    text = "Please water the plants twice a week, and give them some light in the morning. " * 2
    ids = loaded.tokenizer(text)["input_ids"]
    probe = ProbeSet([Completion(ids[: 6 + 3 * k], 4) for k in range(8)], pad_id=loaded.tokenizer.pad_token_id)
    probe.cache(model)
    assert probe.measure(model).kl == 0.0
    models.perturb(model, "default", 0.05, seed=1)
    drift = probe.measure(model)
    assert drift.kl > 0.01
    assert drift.per_sample_kl.min() > 0
    assert 0 < drift.entropy < math.log(49152)
