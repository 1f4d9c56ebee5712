from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.capture import GradientCapture, GradientStatistics
from loralign.capture.labels import BatchLabels
from loralign.errors import AdapterError, ConfigError, DataError, StateError
from loralign.lora import lora_layers
from tests import oracles, zoo

IDS = torch.tensor([0, 1, 2, 0, -1, 1])


def _dense(model, losses, ids=IDS, objectives=3):
    layers = lora_layers(model)
    dense = oracles.full_gradients(model, losses, ids, objectives)
    euclidean = oracles.lora_gradients(model, losses, ids, objectives)
    full = torch.stack([oracles.gram(row) for row in dense])
    accessible = torch.stack(
        [
            oracles.gram([oracles.accessible_part(gradient, layer.A.detach(), layer.B.detach()) for gradient in row])
            for layer, row in zip(layers, dense, strict=True)
        ]
    )
    parameters = torch.stack(
        [oracles.gram([torch.cat([a.flatten(), b.flatten()]) for a, b in row]) for row in euclidean]
    )
    return full, accessible, parameters


def _captured(model, inputs, ids=IDS, **options):
    capture = GradientCapture(model, zoo.OBJECTIVES, **options)
    losses = zoo.sample_losses(model, inputs)
    with capture(ids):
        losses.mean().backward()
    return capture


@pytest.mark.parametrize("architecture", zoo.BUILDERS)
@pytest.mark.parametrize("trained", [False, True], ids=["start", "trained"])
def test_exact_gramians_equal_dense_autograd(architecture, trained):
    model = zoo.lora_model(architecture, trained=trained)
    oracles.require_base_gradients(model)
    inputs = zoo.batch()
    expected = _dense(model, zoo.sample_losses(model, inputs))
    statistics = _captured(model, inputs, exact=True).statistics()
    for got, want in zip(
        (statistics.layer_full, statistics.layer_accessible, statistics.layer_euclidean), expected, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-14 + 1e-9 * want.abs().max().item())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_accessible_and_euclidean_do_not_depend_on_the_sketch(architecture):
    model = zoo.lora_model(architecture)
    inputs = zoo.batch()
    exact = _captured(model, inputs, exact=True).statistics()
    sketched = _captured(model, inputs, sketch_size=3, seed=7).statistics()
    torch.testing.assert_close(sketched.layer_accessible, exact.layer_accessible)
    torch.testing.assert_close(sketched.layer_euclidean, exact.layer_euclidean)


def test_sketched_full_gramian_is_unbiased():
    model = zoo.lora_model()
    inputs = zoo.batch()
    exact = _captured(model, inputs, exact=True).statistics().full
    draws = torch.stack([_captured(model, inputs, sketch_size=4, seed=seed).statistics().full for seed in range(150)])
    error = (draws.mean(dim=0) - exact).abs()
    standard = draws.std(dim=0) / len(draws) ** 0.5
    assert (error < 4 * standard).all()
    assert (standard.diagonal() < 0.05 * exact.diagonal()).all()


def test_shared_directions_are_exact_and_leave_the_estimate_unbiased():
    model = zoo.lora_model()
    inputs, other = zoo.batch(), zoo.batch(seed=8)
    exact = _captured(model, inputs, exact=True).statistics().full

    def second_draws(deflation):
        draws = []
        for seed in range(100):
            capture = _captured(model, other, sketch_size=4, seed=seed, deflation=deflation)
            capture.reset()
            losses = zoo.sample_losses(model, inputs)
            with capture(IDS):
                losses.mean().backward()
            draws.append(capture.statistics().full)
            capture.close()
        return torch.stack(draws)

    plain, deflated = second_draws(0), second_draws(2)
    error = (deflated.mean(dim=0) - exact).abs()
    assert (error < 4 * deflated.std(dim=0) / 10).all()
    assert (deflated.std(dim=0).diagonal() < plain.std(dim=0).diagonal()).all()


def test_shared_directions_stay_outside_row_a_and_survive_saving():
    model = zoo.lora_model()
    inputs = zoo.batch()
    capture = _captured(model, inputs, deflation=2)
    saved = capture.tensor_state(), capture.state_dict()
    capture.reset()

    def measure(which):
        with which(IDS):
            zoo.sample_losses(model, inputs).mean().backward()
        return which

    for accumulator in measure(capture)._accumulators:
        directions = accumulator.directions
        torch.testing.assert_close(directions.mT @ directions, torch.eye(2).double(), atol=1e-9, rtol=0)
        assert (accumulator.basis_a.Q.mT @ directions).abs().max() < 1e-9
    resumed = GradientCapture(model, zoo.OBJECTIVES, deflation=2)
    resumed.load_state_dict(saved[1], saved[0])
    assert torch.equal(measure(resumed).statistics().full, capture.statistics().full)
    with pytest.raises(StateError, match="directions"):
        GradientCapture(model, zoo.OBJECTIVES, deflation=1).load_state_dict(saved[1], saved[0])


def test_given_directions_serve_one_measurement():
    model = zoo.lora_model()
    inputs = zoo.batch()
    capture = _captured(model, inputs, deflation=0)

    def columns():
        with capture(IDS):
            zoo.sample_losses(model, inputs).mean().backward()
        return {layer.directions.shape[1] for layer in capture._accumulators}

    capture.reset([torch.eye(layer.A.shape[1]).double()[:, :3] for layer in capture.layers])
    assert columns() == {3}
    capture.reset()
    assert columns() == {0}


def test_gradients_that_are_not_finite_leave_no_shared_directions():
    model = zoo.lora_model()
    inputs = zoo.batch()
    capture = GradientCapture(model, zoo.OBJECTIVES)

    def measure(factor):
        with capture(IDS):
            (factor * zoo.sample_losses(model, inputs).mean()).backward()
        capture.reset()
        return torch.cat([direction.norm(dim=0) for direction in capture.tensor_state().values()])

    assert (measure(float("nan")) == 0).all()
    # The search goes on from nothing.
    torch.testing.assert_close(measure(1.0), torch.ones(len(capture.layers)).double())


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 6), trained=st.booleans())
def test_attenuation_lies_between_zero_and_one(seed, size, trained):
    model = zoo.lora_model(rank=2, trained=trained, seed=seed)
    statistics = _captured(model, zoo.batch(seed=seed), sketch_size=size, seed=seed).statistics()
    for per in ("model", "layer"):
        attenuation = statistics.attenuation(per=per)
        assert ((attenuation >= 0) & (attenuation <= 1)).all()
    assert (statistics.full.diagonal() >= statistics.accessible.diagonal() - 1e-15).all()


def test_micro_batches_add_up_to_the_whole_batch():
    model = zoo.lora_model()
    inputs = zoo.batch()
    whole = _captured(model, inputs, seed=3)
    parts = GradientCapture(model, zoo.OBJECTIVES, seed=3)
    losses = zoo.sample_losses(model, inputs)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        with parts(IDS[start:stop], loss_scale=(stop - start) / len(IDS)):
            rows = {key: value[start:stop] for key, value in inputs.items()}
            (zoo.sample_losses(model, rows).sum() / len(losses)).backward()
    for normalise in (None, "mean"):
        left, right = whole.statistics(normalise), parts.statistics(normalise)
        torch.testing.assert_close(left.layer_full, right.layer_full)
        torch.testing.assert_close(left.layer_accessible, right.layer_accessible)
    assert whole.statistics().samples.tolist() == parts.statistics().samples.tolist() == [2, 2, 1]


def test_mean_normalisation_gives_each_objectives_own_mean_gradient():
    model = zoo.lora_model()
    inputs = zoo.batch()
    statistics = _captured(model, inputs, exact=True).statistics("mean")
    for objective in range(3):
        alone = {key: value[objective == IDS] for key, value in inputs.items()}
        own = _captured(model, alone, ids=torch.full((len(alone["labels"]),), objective), exact=True).statistics()
        torch.testing.assert_close(statistics.full[objective, objective], own.full[objective, objective])


def test_one_backward_equals_separate_backwards_and_leaves_gradients_alone():
    model = zoo.lora_model()
    inputs = zoo.batch()
    together = _captured(model, inputs, exact=True)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    expected = together.statistics().full
    together.close()
    model.zero_grad()
    separate = GradientCapture(model, zoo.OBJECTIVES, exact=True)
    for objective in range(3):
        losses = zoo.sample_losses(model, inputs)
        with separate(torch.where(objective == IDS, IDS, -1)):
            (losses * (objective == IDS)).sum().div(len(IDS)).backward()
    torch.testing.assert_close(expected, separate.statistics().full)
    separate.close()
    model.zero_grad()
    zoo.sample_losses(model, inputs).mean().backward()
    for got, want in zip(gradients, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    plain = zoo.lora_model()
    checkpointed = zoo.checkpointed(zoo.lora_model(), reentrant=reentrant)
    inputs = zoo.batch()
    expected = _captured(plain, inputs).statistics()
    got = _captured(checkpointed, inputs).statistics()
    torch.testing.assert_close(got.layer_full, expected.layer_full)
    assert got.tokens.tolist() == expected.tokens.tolist()


@pytest.mark.parametrize("architecture", ["llama", *zoo.FLATTENED])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_stacked_pairs_share_their_objective(architecture, checkpointing):
    model = zoo.lora_model(architecture)
    oracles.require_base_gradients(model)
    inputs = zoo.batch()
    per_row, per_pair = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2])
    expected = _dense(model, zoo.sample_losses(model, inputs), per_row)
    if checkpointing:
        model = zoo.checkpointed(model)
    for ids in (per_row, per_pair):
        capture = _captured(model, inputs, ids=ids, exact=True)
        statistics = capture.statistics()
        capture.close()
        for got, want in zip(
            (statistics.layer_full, statistics.layer_accessible, statistics.layer_euclidean), expected, strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-14 + 1e-9 * want.abs().max().item())
        assert statistics.samples.tolist() == 3 * [len(ids) // 3]


def test_flattened_tokens_of_unknown_rows_are_refused():
    model = zoo.lora_model("opt", target_modules=["fc1", "fc2"])
    inner = model.get_base_model()
    inputs = zoo.batch()
    expected = _captured(model, inputs).statistics().full
    capture = GradientCapture(model, zoo.OBJECTIVES)
    losses = zoo.sample_losses(inner, inputs)
    unknown = r"fc2: the layer saw 42 flattened tokens.*call the model that was given"
    with pytest.raises(StateError, match=unknown), capture(IDS):
        losses.mean().backward()
    # The order does not matter where all samples have one objective.
    capture = GradientCapture(model, zoo.OBJECTIVES)
    with capture(torch.ones(3, dtype=torch.int64)):
        zoo.sample_losses(inner, inputs).mean().backward()
    assert capture.statistics().full[1, 1] > 0
    capture = GradientCapture(inner, zoo.OBJECTIVES)
    with capture(IDS):
        zoo.sample_losses(inner, inputs).mean().backward()
    torch.testing.assert_close(capture.statistics().full, expected)


def test_tokens_that_are_not_those_of_the_batch_are_refused():
    labels = BatchLabels((0, 1))
    assert labels.runs_of(torch.zeros(12, 3), 4, "here") == [(0, 3, 0), (3, 6, 1), (6, 9, 0), (9, 12, 1)]
    assert labels.runs_of(torch.zeros(4, 3, 5), 4, "here") == [(0, 1, 0), (1, 2, 1), (2, 3, 0), (3, 4, 1)]
    with pytest.raises(StateError, match=r"here: the layer saw 13 tokens of a batch of 4 rows.*experts"):
        labels.runs_of(torch.zeros(13, 3), 4, "here")


def test_samples_without_any_weight_have_no_share():
    model = zoo.lora_model()
    inputs = zoo.batch()
    capture = GradientCapture(model, zoo.OBJECTIVES)
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6])
    for scale in (weights, torch.zeros(6)):
        losses = zoo.sample_losses(model, inputs)
        with capture(IDS, sample_weights=scale):
            (losses * scale).mean().backward()
    torch.testing.assert_close(capture.shares, torch.tensor([5.0, 8, 3], dtype=torch.float64) / 21)
    assert capture.statistics("mean").full.isfinite().all()


def test_padding_adds_nothing():
    model = zoo.lora_model()
    inputs = zoo.batch()
    longer = {
        key: torch.nn.functional.pad(value, (0, 5), value=-100 if key == "labels" else 0)
        for key, value in inputs.items()
    }
    torch.testing.assert_close(_captured(model, inputs).statistics().full, _captured(model, longer).statistics().full)


def test_step_inner_is_the_directional_derivative():
    model = zoo.lora_model("gpt2")
    inputs = zoo.batch()
    capture = _captured(model, inputs)
    generator = torch.Generator().manual_seed(5)
    steps = [
        (
            torch.randn(layer.A.shape, generator=generator, dtype=torch.float64),
            torch.randn(layer.B.shape, generator=generator, dtype=torch.float64),
        )
        for layer in capture.layers
    ]
    got = capture.step_inner(steps, normalise="mean")
    # As captured, every objective counts by its share of the batch's samples.
    shares = torch.stack([(objective == IDS).double().mean() for objective in range(3)])
    torch.testing.assert_close(capture.step_inner(steps), got * shares)

    losses = zoo.sample_losses(model, inputs)
    expected = [
        torch.autograd.grad(
            losses[objective == IDS].mean(), [f for la in capture.layers for f in (la.A, la.B)], retain_graph=True
        )
        for objective in range(3)
    ]
    flat = [factor for step in steps for factor in step]
    for objective, row in enumerate(expected):
        want = sum((gradient * step).sum() for gradient, step in zip(row, flat, strict=True))
        torch.testing.assert_close(got[objective], want)


def test_close_leaves_the_model_as_it_was_found():
    model = zoo.lora_model()
    before = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    capture = _captured(model, zoo.batch())
    capture.close()
    assert before == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    with pytest.raises(StateError, match="closed"), capture(IDS):
        pass


def test_a_new_capture_closes_one_that_was_cut_off_in_a_block():
    """Its ids fit no batch to come; one that is not in use is left alone."""
    model = zoo.lora_model()
    unused = _captured(model, zoo.batch())
    cut_off = GradientCapture(model, zoo.OBJECTIVES)
    cut_off.begin(torch.tensor([0, 1, 2, 0]))
    new = _captured(model, zoo.batch())
    torch.testing.assert_close(new.statistics().samples, unused.statistics().samples)
    with pytest.raises(StateError, match="closed"):
        cut_off.begin(IDS)
    with unused(IDS):
        zoo.sample_losses(model, zoo.batch()).mean().backward()
    assert unused.statistics().samples.tolist() == [4, 4, 2]


def test_disabled_capture_places_no_probe():
    model = zoo.lora_model()
    capture = GradientCapture(model, zoo.OBJECTIVES)
    capture.enabled = False
    loss = zoo.sample_losses(model, zoo.batch()).mean()
    with capture(IDS):
        loss.backward()
    assert capture.statistics().full.abs().sum() == 0


def test_draws_differ_and_are_resumed():
    model = zoo.lora_model()
    inputs = zoo.batch()
    capture = _captured(model, inputs, sketch_size=2)
    first = capture.statistics().full
    capture.reset()
    saved = json.loads(json.dumps(capture.state_dict()))
    directions = capture.tensor_state()

    def measure(which):
        with which(IDS):
            zoo.sample_losses(model, inputs).mean().backward()
        return which.statistics().full

    second = measure(capture)
    assert not torch.equal(first, second)
    resumed = GradientCapture(model, zoo.OBJECTIVES, sketch_size=2)
    resumed.load_state_dict(saved, directions)
    assert torch.equal(measure(resumed), second)
    with pytest.raises(StateError, match="sketch_size"):
        GradientCapture(model, zoo.OBJECTIVES, sketch_size=3).load_state_dict(saved)


def test_statistics_survive_json():
    statistics = _captured(zoo.lora_model(), zoo.batch()).statistics("mean")
    again = GradientStatistics.from_state_dict(json.loads(json.dumps(statistics.state_dict())))
    assert torch.equal(again.layer_full, statistics.layer_full)
    assert again.objectives == statistics.objectives
    broken = statistics.state_dict() | {"layer_full": [[1.0]]}
    with pytest.raises(StateError, match="layer_full"):
        GradientStatistics.from_state_dict(broken)
    with pytest.raises(StateError, match="version"):
        GradientStatistics.from_state_dict({"version": 99})


def test_wrong_use_is_named():
    model = zoo.lora_model()
    with pytest.raises(ConfigError, match="different names"):
        GradientCapture(model, ["a", "a"])
    with pytest.raises(ConfigError, match="sketch_size"):
        GradientCapture(model, ["a"], sketch_size=0)
    for size, rows in ((2, 6), (32, 96)):
        with pytest.raises(ConfigError, match=rf"deflation 25 is more than the {rows} rows .* 24 inputs"):
            GradientCapture(model, zoo.OBJECTIVES, sketch_size=size, deflation=25)
    with pytest.raises(ConfigError, match="deflation 7"):
        GradientCapture(model, zoo.OBJECTIVES, sketch_size=2, deflation=7)
    GradientCapture(model, zoo.OBJECTIVES, sketch_size=2, deflation=7, exact=True)
    capture = GradientCapture(model, zoo.OBJECTIVES)
    with pytest.raises(StateError, match="nothing was captured"):
        capture.statistics()
    with pytest.raises(DataError, match=r"-1\.\.2"), capture(torch.tensor([0, 3])):
        pass
    with pytest.raises(DataError, match="integer tensor"), capture(torch.tensor([0.0])):
        pass
    losses = zoo.sample_losses(model, zoo.batch())
    with pytest.raises(DataError, match="do not fit"), capture(torch.tensor([0, 1, 2, 0])):
        losses.mean().backward()
    with capture(IDS), pytest.raises(StateError, match="nested"), capture(IDS):
        pass
    with torch.no_grad():
        capture.layers[0].A.add_(1.0)
    with pytest.raises(StateError, match="changed between"), capture(IDS):
        pass


def test_a_model_on_several_devices_is_refused():
    model = zoo.lora_model()
    model.get_submodule(lora_layers(model)[-1].name).to("meta")
    with pytest.raises(AdapterError, match="several devices, cpu, meta"):
        GradientCapture(model, zoo.OBJECTIVES)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bfloat16_base_keeps_float32_statistics():
    reference = zoo.lora_model(dtype=torch.float64)
    model = zoo.lora_model(dtype=torch.float64)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if "lora_" in name else torch.bfloat16)
    inputs = zoo.batch()
    got = _captured(model, inputs, exact=True)
    assert got._accumulators[0].right.dtype == torch.float32
    expected = _captured(reference, inputs, exact=True).statistics().attenuation()
    torch.testing.assert_close(got.statistics().attenuation(), expected, rtol=0.03, atol=0)
