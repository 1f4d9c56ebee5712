"""The true Fisher: responses drawn from the model itself."""

from __future__ import annotations

import pytest
import torch

from loralign.data.completions import Completion, completion_batches
from loralign.errors import DataError
from loralign.guard import estimate_fisher
from loralign.guard.responses import response_losses, sample_responses
from tests import oracles, zoo
from tests.guard import fisher_oracles

DRAW = {"max_length": 32, "max_new_tokens": 6, "pad_id": 0, "seed": 5}


def _model(architecture="llama"):
    """A model whose probabilities are far from even, so that draws differ from guesses."""
    model = zoo.lora_model(architecture).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model


def test_one_token_responses_give_the_fisher_of_the_models_own_distribution():
    model = _model()
    prompts = [[3, 5, 7, 9], [11, 4, 6]]
    samples = [Completion([*prompt, 3], len(prompt), row=row) for row, prompt in enumerate(prompts * 1500)]
    drawn = estimate_fisher(
        model, samples, kind="sampled", method="exact", rank=4, batch_size=500, min_agreement=0, show_progress=False
    )
    assert drawn.info.kind == "sampled"
    assert drawn.info.tokens == len(samples)
    # Σ_y p(y) G_y G_yᵀ over all tokens that may follow.
    chances, rows = [], []
    for prompt in prompts:
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        chances += (logits.softmax(-1) / len(prompts)).tolist()
        rows += [Completion([*prompt, token], len(prompt)) for token in range(zoo.VOCABULARY)]
    for name, gradients in fisher_oracles.sample_gradients(model, rows).items():
        squares = torch.stack([one @ one.mT for one in gradients])
        want = (torch.tensor(chances).double()[:, None, None] * squares).sum(dim=0)
        assert drawn.layers[name].trace == pytest.approx(float(want.trace()), rel=0.1)
        basis = drawn.layers[name].basis.double()
        captured = float((basis.mT @ want @ basis).trace())
        assert captured == pytest.approx(float(torch.linalg.eigvalsh(want)[-4:].sum()), rel=0.02)
        if float(want.trace()) > 0:
            evenly = squares.mean(dim=0).trace()
            assert abs(float(evenly / want.trace()) - 1) > 0.2


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mixtral", "gpt2"])
def test_draws_do_not_depend_on_the_batch_and_end_where_they_must(architecture):
    model = _model(architecture)
    samples = fisher_oracles.completions(12)
    together = sample_responses(model, samples, range(12), **DRAW)
    alone = [sample_responses(model, [one], [index], **DRAW)[0] for index, one in enumerate(samples)]
    assert together == alone
    ends = {model.config.eos_token_id}
    for before, after in zip(samples, together, strict=True):
        response = after.ids[after.prompt_length :]
        assert after.ids[: after.prompt_length] == before.ids[: before.prompt_length]
        assert (after.prompt_length, after.label, after.row) == (before.prompt_length, before.label, before.row)
        assert 1 <= len(response) <= 6
        assert not ends & set(response[:-1])
        assert len(response) == 6 or response[-1] in ends
    assert together != sample_responses(model, samples, range(12), **{**DRAW, "seed": 6})
    assert together == sample_responses(model, samples, range(12), **DRAW)
    short = sample_responses(model, samples, range(12), **{**DRAW, "max_length": 12})
    assert max(len(one.ids) for one in short) == 12


def test_draws_follow_the_probabilities_of_the_model():
    model = _model()
    prompt = [5, 9, 3, 8]
    chances = model(input_ids=torch.tensor([prompt])).logits[0, -1].detach().softmax(-1)
    samples = [Completion([*prompt, 3], 4)] * 4000
    drawn = sample_responses(model, samples, range(4000), **{**DRAW, "max_new_tokens": 1})
    counts = torch.bincount(torch.tensor([one.ids[-1] for one in drawn]), minlength=zoo.VOCABULARY)
    deviation = (chances * (1 - chances) / 4000).sqrt()
    assert (((counts / 4000 - chances).abs()) < 4.5 * deviation + 1e-3).all()
    assert float(chances.max()) > 0.05


def test_a_prompt_is_needed():
    samples = [Completion([3, 4, 5], 0)] * 4
    options = {"rank": 1, "min_agreement": 0, "show_progress": False}
    assert estimate_fisher(zoo.lora_model(), samples, **options).info.tokens == 8
    with pytest.raises(DataError, match="no prompt"):
        estimate_fisher(zoo.lora_model(), samples, kind="sampled", **options)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("adapter_on_head", [False, True])
def test_losses_are_those_of_the_models_own_logits(reduction, adapter_on_head):
    targets = [*zoo.TARGETS["llama"], *(["lm_head"] if adapter_on_head else [])]
    model = zoo.lora_model("llama", target_modules=targets)
    samples = fisher_oracles.completions(5)
    (batch,) = completion_batches(samples, 5, 0)
    losses = response_losses(model, batch, reduction)
    for loss, row in zip(losses, batch.rows, strict=True):
        ids = torch.tensor([samples[row].ids])
        start = samples[row].prompt_length
        taken = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[start - 1 :]
        torch.testing.assert_close(loss, -taken.mean() if reduction == "mean" else -taken.sum())


def test_an_adapter_on_the_head_is_measured_sample_by_sample():
    model = zoo.lora_model("llama", target_modules=["lm_head"])
    samples = fisher_oracles.completions(6)
    found = estimate_fisher(model, samples, method="exact", rank=4, min_agreement=0, show_progress=False)
    want = fisher_oracles.fisher(fisher_oracles.sample_gradients(model, samples)["lm_head"])
    torch.testing.assert_close(found.layers["lm_head"].eigenvalues.double(), torch.linalg.eigvalsh(want).flip(0)[:4])


def test_base_weights_of_the_oracle_are_frozen_again():
    model = zoo.lora_model()
    fisher_oracles.sample_gradients(model, fisher_oracles.completions(2))
    assert not any(oracles.base_weight(model, layer)[0].requires_grad for layer in oracles.lora_layers(model))
