"""TRL's own loss and metrics on the rows of one objective, without running the model again."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer


class OutputRecorder:
    """Calls a model and keeps its last output."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.outputs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        self.outputs = self.model(*args, **kwargs)
        return self.outputs


class _LocalAccelerator:
    """An accelerator of one process: a slice of a batch is not the same size on every process, so no gathering.

    Its device is the CPU, where the slices are.
    """

    device = torch.device("cpu")

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, value: Tensor) -> Tensor:
        return value.reshape(-1)

    gather_for_metrics = gather


class _TrainerView:
    """A trainer whose loss is computed on given outputs and whose metrics go elsewhere."""

    def __init__(self, trainer: DPOTrainer) -> None:
        self._trainer = trainer
        self.accelerator = _LocalAccelerator(trainer.accelerator)
        mode = {"train": _Lists(), "eval": _Lists()}
        self._metrics = mode
        self._total_train_tokens = 0
        self.precompute_ref_logps = True
        self.aux_loss_enabled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        self[key] = []
        return self[key]


@dataclass(frozen=True)
class ObjectiveMetrics:
    """Loss, reward accuracy and reward margin of one objective's pairs in one batch."""

    pairs: int
    loss: float
    accuracy: float
    margin: float


@torch.no_grad()
def objective_metrics(
    trainer: DPOTrainer, outputs: Any, inputs: dict[str, Tensor], ids: Tensor
) -> dict[int, ObjectiveMetrics]:
    """Evaluate ``DPOTrainer``'s loss on every objective's rows of a batch that the model has already seen.

    On the CPU: TRL's loss reads a dozen numbers each time, and on a GPU every one of them would be waited for.

    Args:
        trainer: the trainer that made ``outputs``.
        outputs: the policy's output on the stacked ``[chosen; rejected]`` batch: numbers per row and token.
        inputs: the batch, with the reference's log-probabilities in it.
        ids: ``(pairs,)`` objective ids, on the CPU; rows of id −1 are left out.
    """
    inputs = {key: value.cpu() for key, value in inputs.items() if isinstance(value, Tensor) and value.ndim}
    outputs = replace(outputs, **{field.name: _on_cpu(getattr(outputs, field.name)) for field in fields(outputs)})
    return {
        objective: _metrics_of(trainer, outputs, inputs, ids, objective)
        for objective in sorted(set(ids.tolist()) - {-1})
    }


def _metrics_of(
    trainer: DPOTrainer, outputs: Any, inputs: dict[str, Tensor], ids: Tensor, objective: int
) -> ObjectiveMetrics:
    pairs = (ids == objective).nonzero().squeeze(1)
    rows = torch.cat([pairs, pairs + len(ids)])
    sliced = {key: value[pairs if value.shape[0] == len(ids) else rows] for key, value in inputs.items()}
    part = replace(outputs, **{field.name: _rows(getattr(outputs, field.name), rows) for field in fields(outputs)})
    view = _TrainerView(trainer)
    loss = DPOTrainer._compute_loss(view, lambda **_: part, sliced, False)
    metrics = view._metrics["train" if trainer.model.training else "eval"]
    return ObjectiveMetrics(
        pairs=len(pairs),
        loss=float(loss),
        accuracy=metrics["rewards/accuracies"][-1],
        margin=metrics["rewards/margins"][-1],
    )


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) and value.ndim else value


def _rows(value: Any, rows: Tensor) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.ndim else value
