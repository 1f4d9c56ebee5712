"""The sketch against exact gradients on SmolLM2-135M-Instruct with real pairs (the issue's 3 % at k = 32)."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loralign.capture import GradientCapture
from loralign.capture.accumulator import LayerAccumulator
from loralign.capture.sketch import sketch_matrix, sketch_seed
from loralign.data import load_preferences
from loralign.evaluation import tokenise_pairs
from loralign.lora import column_bases
from loralign.models import load_model

OBJECTIVES = ("helpful", "honest", "harmless")
SKETCH_SIZE, SEEDS = 32, 40


@pytest.fixture(scope="module")
def setting():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = load_model()
        torch.manual_seed(0)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(loaded.model, lora)
    pairs = load_preferences(["builtin"]).dataset
    rows = [
        next(i for i, label in enumerate(pairs["objective"]) if label == name) + k
        for name in OBJECTIVES
        for k in (0, 1)
    ]
    batches = [
        _batch(
            tokenise_pairs(pairs.select([row + shift for row in rows]), loaded.tokenizer, 96),
            loaded.tokenizer.pad_token_id,
        )
        for shift in (0, 40)
    ]
    return model, *batches


def _batch(tokenised, pad):
    """``[chosen; rejected]`` rows, their completion masks, and one objective id per pair."""
    sides = [[row["prompt_ids"] + row[f"{side}_ids"] for row in tokenised] for side in ("chosen", "rejected")]
    starts = [len(row["prompt_ids"]) for row in tokenised] * 2
    rows = sides[0] + sides[1]
    ids = torch.full((len(rows), 96), pad)
    completion = torch.zeros(len(rows), 96, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        completion[index, starts[index] : len(row)] = True
    objectives = torch.tensor([OBJECTIVES.index(label) for label in tokenised["objective"]])
    return ids, completion, objectives


def _loss(model, batch):
    ids, completion, _ = batch
    logits = model(ids[:, :-1]).logits.float()
    log_probs = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None]).squeeze(-1)
    chosen, rejected = (log_probs * completion[:, 1:]).sum(1).chunk(2)
    return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()


def _exact(model, batch):
    """Exact statistics and full gradients of a batch."""
    capture = GradientCapture(model, OBJECTIVES, exact=True)
    loss = _loss(model, batch)
    with capture(batch[2]):
        loss.backward()
    model.zero_grad()
    statistics = capture.statistics()
    gradients = [layer.exact / layer.scaling for layer in capture._accumulators]
    capture.close()
    return capture.layers, statistics, gradients


def _draws(layers, gradients, directions, seeds):
    """γ from sketches of full gradients, through the accumulator that training uses; one row per seed."""
    bases = column_bases([f for layer in layers for f in (layer.A.detach().mT, layer.B.detach())])
    totals = torch.zeros(2, seeds, 3, dtype=torch.float64)
    found = []
    for index, (layer, exact) in enumerate(zip(layers, gradients, strict=True)):
        rows, columns = layer.B.shape[0], layer.A.shape[1]
        unit = torch.eye(min(rows, columns))
        A = layer.A.detach()
        # G = Σ_t g_t x_tᵀ, with unit vectors as inputs or as gradients, whichever are fewer.
        tokens = [(g, unit) if rows <= columns else (unit, g.mT) for g in exact]
        for seed in range(seeds):
            sketch = sketch_matrix(
                rows,
                SKETCH_SIZE,
                seed=sketch_seed(seed, len(directions), index),
                dtype=torch.float32,
                device=torch.device("cpu"),
            )
            known = directions[index] if directions else None
            accumulator = LayerAccumulator(layer, bases[2 * index], bases[2 * index + 1], sketch, 3, known)
            for objective, (x, gradient) in enumerate(tokens):
                accumulator.add(x, x @ A.mT, layer.scaling * gradient, [(0, len(unit), objective)])
            parts = accumulator.gramians()
            totals[0, seed] += parts.accessible.diagonal()
            totals[1, seed] += parts.full.diagonal()
        found.append(accumulator.leading_directions(1))
    return (totals[0] / totals[1]).sqrt(), found


def _check(model, batch, earlier):
    """95 % of the seeds within 3 %, as the measurements after the first are: with the directions found before."""
    layers, _, gradients = _exact(model, earlier)
    with torch.no_grad():
        _, directions = _draws(layers, gradients, [], 1)
    layers, statistics, gradients = _exact(model, batch)
    exact = statistics.attenuation()
    with torch.no_grad():
        draws, _ = _draws(layers, gradients, directions, SEEDS)
    within = ((draws / exact - 1).abs() <= 0.03).double().mean(dim=0)
    assert (within >= 0.95).all(), within
    # Far better in truth: one exact direction per layer leaves a tenth of the noise.
    assert (draws / exact - 1).abs().max() < 0.02
    return exact


@pytest.mark.realmodel
def test_sketch_of_32_columns_is_within_three_per_cent(setting):
    model, batch, earlier = setting
    start = _check(model, batch, earlier)
    # A random A of rank r sees about √(r/n) of any gradient.
    assert ((start > 0.1) & (start < 0.25)).all()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(model, batch).backward()
        optimizer.step()
    trained = _check(model, batch, earlier)
    assert (trained > start).all()
