"""Log-probabilities of many openings after many prompts, from one forward pass over each prompt."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from loralign.data.batching import pad_sequences, plan_batches
from loralign.evaluation.opening_tree import OpeningTree
from loralign.evaluation.pairs import FloatArray
from loralign.evaluation.sequence_sums import sequence_sums
from loralign.guard.modes import evaluating

logger = logging.getLogger(__name__)

# Logits of one pass: 256 MiB of float32.
_LOGITS_AT_ONCE = 2**26
# What is read of a prompt is a few dozen tokens, so that coarser lengths would be padding for a good part.
_STEP = 8
# Openings that are scored in both ways, the longest ones, since they lie behind most of the tree.
_CHECKED = 4
# Nats by which two ways to the same sum of log-probabilities may differ by rounding.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
_HALF_TOLERANCE = 0.5


def opening_logprobs(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    tree: OpeningTree,
    *,
    batch_tokens: int = 4096,
    progress: bool = True,
    description: str = "scoring openings",
) -> FloatArray:
    """Σ log π(token | prompt, opening so far) over the tokens of each opening, ``(prompts, openings)`` in nats.

    The beginning that all prompts share, such as the chat template's system turn, is read once a batch. The nodes of
    the tree stand behind each prompt in one sequence, and an attention mask lets each of them see the prompt and its
    own ancestors only, at the positions that they have in their openings. That a model heeds such a mask is checked on
    the longest prompt against sequences of one long opening each; where it does not (recurrent layers, a window shorter
    than the prompt), all openings are scored that slower way.

    Args:
        model: causal language model; left as it was found.
        prompts: token ids, each of at least one token, with room for the longest opening in the model's positions.
        tree: of the openings.
        batch_tokens: most tokens of one batch, padding included.
        progress: show a progress bar with the rate.
        description: what the bar says.
    """

    def one_by_one(indices: Sequence[int], openings: Sequence[Sequence[int]], shown: bool) -> FloatArray:
        sequences = [[*prompts[index], *opening] for index in indices for opening in openings]
        lengths = [len(prompts[index]) for index in indices for _ in openings]
        sums = sequence_sums(
            model, sequences, lengths, batch_tokens=batch_tokens, progress=shown, description=description
        )
        table: FloatArray = sums[0].reshape(len(indices), len(openings))
        return table

    everything = range(len(prompts))
    if not _takes_masks(model):
        return one_by_one(everything, tree.openings, progress)
    shared = _shared(model, prompts)
    beginning, rests = prompts[0][:shared], [prompt[shared:] for prompt in prompts]
    found = np.zeros((len(prompts), len(tree.openings)))
    nodes = len(tree.tokens)
    at_once = max(1, _LOGITS_AT_ONCE // ((nodes + 1) * model.get_input_embeddings().weight.shape[0]))
    deepest = sorted(range(len(tree.openings)), key=lambda index: -len(tree.openings[index]))[:_CHECKED]
    checked = False
    with (
        evaluating(model),
        tqdm(total=len(prompts), desc=description, unit="prompt", disable=not progress) as bar,
    ):
        for planned, length in plan_batches([len(rest) + nodes for rest in rests], batch_tokens, step=_STEP):
            for members in (planned[start : start + at_once] for start in range(0, len(planned), at_once)):
                values = _together(model, beginning, [rests[index] for index in members], tree, length)
                if not checked:
                    expected = one_by_one(members[:1].tolist(), [tree.openings[index] for index in deepest], False)
                    if not np.abs(values[:1, deepest] - expected).max() < _TOLERANCE.get(
                        _dtype(model), _HALF_TOLERANCE
                    ):
                        logger.info("%s does not heed a mask of its own: openings one by one", type(model).__name__)
                        break
                    checked = True
                found[members] = values
                bar.update(len(members))
            if not checked:
                break
    return found if checked else one_by_one(everything, tree.openings, progress)


def _together(
    model: PreTrainedModel | PeftModel,
    beginning: Sequence[int],
    rests: list[Sequence[int]],
    tree: OpeningTree,
    length: int,
) -> FloatArray:
    """The log-probabilities of all openings after prompts of similar length, ``(prompts, openings)``."""
    nodes = len(tree.tokens)
    ids, real = pad_sequences(rests, length - nodes, side="left")
    ids = torch.cat([ids, tree.tokens.expand(len(rests), nodes)], dim=1)
    positions = torch.cat([(real.cumsum(1) - 1).clamp_min(0), real.sum(1, keepdim=True) + tree.depth - 1], dim=1)
    device = model.get_input_embeddings().weight.device
    logits = model(
        input_ids=ids.to(device),
        attention_mask=_mask(real, tree, len(beginning), _dtype(model)).to(device),
        position_ids=(positions + len(beginning)).to(device),
        past_key_values=_read(model, beginning, len(rests)),
        use_cache=len(beginning) > 0,
        logits_to_keep=nodes + 1,
    ).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    sources, labels = tree.sources.to(logits.device), tree.labels.to(logits.device)
    edges = logits[:, sources, labels] - logits.logsumexp(-1)[:, sources]
    sums: FloatArray = (edges.double().cpu() @ tree.paths).numpy()
    return sums


def _mask(real: Tensor, tree: OpeningTree, beginning: int, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores: 0 where a token sees another.

    ``(prompts, 1, length, beginning + length)``.
    """
    count, width = real.shape
    length = width + len(tree.tokens)
    sees = torch.zeros(count, length, length, dtype=torch.bool)
    sees[:, :width, :width] = real[:, None, :].bool() & torch.ones(width, width, dtype=torch.bool).tril()
    sees[:, width:, :width] = real[:, None, :].bool()
    sees[:, width:, width:] = tree.sees
    # Padding sees itself, since a row that sees nothing would be no distribution.
    sees |= torch.eye(length, dtype=torch.bool)
    sees = torch.cat([torch.ones(count, length, beginning, dtype=torch.bool), sees], dim=2)
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def _read(model: PreTrainedModel | PeftModel, beginning: Sequence[int], copies: int) -> Any:
    """Keys and values of the beginning for as many sequences; None where there is none."""
    if not beginning:
        return None
    ids = torch.tensor([list(beginning)], device=model.get_input_embeddings().weight.device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(copies)
    return cache


def _shared(model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]]) -> int:
    """Tokens of the beginning that all prompts share and whose keys and values the model keeps as they are."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(len(first), len(last)) - 1
    shared = next((place for place in range(most) if first[place] != last[place]), most)
    if shared < 1:
        return 0
    with evaluating(model):
        layers = getattr(_read(model, first[:shared], 1), "layers", [None])
    # Others forget what lies beyond their window, or keep a state in place of keys and values.
    return shared if all(type(layer) is DynamicLayer for layer in layers) else 0


def _takes_masks(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model's forward takes what the tree needs at all."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False
    parameters = inspect.signature(base.forward).parameters
    attends = getattr(base.config, "_attn_implementation", None) in ("eager", "sdpa")
    return attends and {"attention_mask", "position_ids", "logits_to_keep"} <= set(parameters)


def _dtype(model: PreTrainedModel | PeftModel) -> torch.dtype:
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype
