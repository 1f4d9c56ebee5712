from __future__ import annotations

import pytest
import torch

from loralign.data.completions import Completion
from loralign.guard.losses import completion_losses
from tests.evaluation import models


def _completions() -> list[Completion]:
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 3), (2, 11), (7, 1), (4, 6), (1, 9)]
    return [
        Completion(torch.randint(4, models.VOCABULARY, (prompt + response,), generator=generator).tolist(), prompt)
        for prompt, response in lengths
    ]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_losses_are_those_of_every_sample_alone(architecture: str, batch_size: int) -> None:
    """Means over a sample's own response tokens, in the samples' order; a sum, or a shift by one token, fails."""
    model = models.build(architecture).double().eval()
    completions = _completions()
    found = completion_losses(model, completions, batch_size=batch_size)
    for one, loss in zip(completions, found.tolist(), strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([one.ids])).logits[0].log_softmax(-1)
        expected = [-float(log_probs[place - 1, one.ids[place]]) for place in range(one.prompt_length, len(one.ids))]
        assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_model_is_left_as_it_was_found() -> None:
    model = models.build("llama").train()
    completion_losses(model, _completions())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
