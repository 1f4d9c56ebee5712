"""The peers that find every objective's LoRA gradient by separate backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import DPOTrainer

from arms import Batch
from loralign.training.collator import OBJECTIVE_IDS
from timing import Clock


def separate_backwards(trainer: DPOTrainer, batch: Batch, objectives: int, clock: Clock) -> None:
    """One step of TRL's model with one forward pass and ``K`` backward passes through the graph that is kept.

    The backward pass of objective ``i`` starts at the mean loss over the batch restricted to the pairs of ``i``. It
    yields that objective's gradient on the LoRA factors, and so the Euclidean Gramian; it yields neither the accessible
    nor the full one. The optimiser then steps along the sum.

    Args:
        trainer: TRL's own, with plain LoRA.
        batch: with objective ids.
        objectives: ``K``.
        clock: is told where the backward passes begin and end.
    """
    losses = _losses(trainer, batch)
    ids = batch[OBJECTIVE_IDS]
    parameters = _trained(trainer)
    found = []
    with clock.part("backward"):
        for objective in range(objectives):
            loss = (losses * (ids == objective)).sum() / len(ids)
            found.append(torch.autograd.grad(loss, parameters, retain_graph=objective + 1 < objectives))
    _step(trainer, parameters, found)


def separate_passes(trainer: DPOTrainer, batch: Batch, objectives: int, clock: Clock) -> None:
    """The same gradients from ``K`` small forward and backward passes, each over one objective's own pairs.

    This peer wastes no arithmetic; see :func:`separate_backwards` for what it finds and the arguments.
    """
    ids = batch[OBJECTIVE_IDS]
    parameters = _trained(trainer)
    found = []
    for objective in range(objectives):
        pairs = (ids == objective).nonzero().squeeze(1)
        rows = torch.cat([pairs, pairs + len(ids)])
        own = {key: value[pairs if len(value) == len(ids) else rows] for key, value in batch.items()}
        loss = _losses(trainer, own).sum() / len(ids)
        with clock.part("backward"):
            found.append(torch.autograd.grad(loss, parameters))
    _step(trainer, parameters, found)


def _losses(trainer: DPOTrainer, batch: Batch) -> Tensor:
    """DPO's sigmoid loss of every pair, ``(pairs,)``, with the reference as in TRL's step and none of its metrics."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "completion_mask")}
    if "ref_chosen_logps" in batch:
        reference = (batch["ref_chosen_logps"], batch["ref_rejected_logps"])
    else:
        reference = trainer.compute_ref_log_probs(trainer.model, inputs)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    outputs = trainer.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=labels,
        fused_lm_head=True,
        use_cache=False,
    )
    chosen, rejected = outputs.log_probs.sum(dim=1).chunk(2)
    margin = (chosen - reference[0]) - (rejected - reference[1])
    return -logsigmoid(trainer.beta * margin)


def _trained(trainer: DPOTrainer) -> list[Tensor]:
    return [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]


def _step(trainer: DPOTrainer, parameters: Sequence[Tensor], found: Sequence[Sequence[Tensor]]) -> None:
    """Take the Gramian, which is what the gradients were found for, and step along their sum."""
    stacks = [torch.stack(gradients).flatten(1) for gradients in zip(*found, strict=True)]
    gramian = torch.stack([stack @ stack.mT for stack in stacks]).sum(dim=0)
    weights = torch.ones_like(gramian.diagonal())
    for parameter, stack in zip(parameters, stacks, strict=True):
        parameter.grad = (weights @ stack).view_as(parameter)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
