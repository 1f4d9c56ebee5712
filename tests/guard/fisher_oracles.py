"""Dense per-sample Fisher matrices by plain autograd, one unpadded sample at a time, and random samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loralign.data.completions import Completion
from loralign.lora import canonical_name, lora_layers
from tests import oracles, zoo


def completions(count: int = 6, seed: int = 2, longest: int = 11) -> list[Completion]:
    """Random prompts and responses of various lengths."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in range(count):
        length = int(torch.randint(5, longest + 1, (1,), generator=generator))
        prompt = int(torch.randint(1, length - 1, (1,), generator=generator))
        ids = torch.randint(3, zoo.VOCABULARY, (length,), generator=generator).tolist()
        found.append(Completion(ids, prompt, label=("unsafe", "safe")[row % 2], row=row))
    return found


def sample_gradients(model: nn.Module, samples: list[Completion], reduction: str = "mean") -> dict[str, list[Tensor]]:
    """``G_s (m, n)`` of every sample, by canonical name of the layer."""
    layers = lora_layers(model)
    weights = [oracles.base_weight(model, layer) for layer in layers]
    flags = [weight.requires_grad for weight, _ in weights]
    oracles.require_base_gradients(model)
    training = model.training
    model.eval()
    rows: list[list[Tensor]] = []
    for sample in samples:
        ids = torch.tensor([sample.ids])
        log_probabilities = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        taken = log_probabilities.gather(1, ids[0, 1:, None])[max(sample.prompt_length, 1) - 1 :]
        loss = -taken.mean() if reduction == "mean" else -taken.sum()
        found = torch.autograd.grad(loss, [weight for weight, _ in weights])
        rows.append([one.mT if transposed else one for one, (_, transposed) in zip(found, weights, strict=True)])
    for (weight, _), flag in zip(weights, flags, strict=True):
        weight.requires_grad_(flag)
    model.train(training)
    return {canonical_name(layer.name): [row[index] for row in rows] for index, layer in enumerate(layers)}


def fisher(gradients: list[Tensor]) -> Tensor:
    """``F = E_s[G_s G_sᵀ]``."""
    return torch.stack([one @ one.mT for one in gradients]).mean(dim=0)
