"""Estimating the curvature of the task's loss, the metric ``H`` of the stability term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from loralign.capture.samples import SampleCapture
from loralign.capture.sketch import sketch_seed
from loralign.data.completions import Completion, completion_batches, tokenise_completions
from loralign.errors import ConfigError, DataError, NonFiniteError
from loralign.guard.accumulator import TokenGrams
from loralign.guard.attachment import measurable
from loralign.guard.curvature_sums import CurvatureSums
from loralign.guard.nystrom import gaussian_test_matrix
from loralign.guard.responses import response_losses
from loralign.guard.task_curvature import CurvatureFactor, TaskCurvature
from loralign.lora import lora_layers
from loralign.lora.layers import working_dtype

__all__ = ["CurvatureFactor", "CurvatureKind", "TaskCurvature", "estimate_curvature"]

CurvatureKind = Literal["diagonal", "kronecker"]

# The stream of random numbers of these test matrices, beside those of the Fisher estimate.
_TEST_MATRICES = 4
_OVERSAMPLING = 16


def estimate_curvature(
    model: nn.Module,
    completions: Sequence[Completion] | Dataset,
    *,
    tokenizer: Any = None,
    kind: CurvatureKind = "diagonal",
    rank: int = 16,
    batch_size: int = 8,
    max_length: int = 256,
    seed: int = 0,
    show_progress: bool = True,
) -> list[TaskCurvature]:
    """The empirical Fisher of the task's loss at the model's present weights, factored per layer.

    ``diagonal`` is the diagonal of the output side ``E_s[G_s G_sᵀ]``. ``kronecker`` is ``S_out ⊗ S_in`` with
    ``S_out ∝ E_s[G_s G_sᵀ]`` and ``S_in ∝ E_s[G_sᵀG_s]``, each as an exact diagonal and its ``rank`` leading eigenpairs
    (docs/adapting.md, Penalties). ``G_s (m, n)`` is the gradient of the mean negative log-likelihood of sample ``s``'s
    response with respect to the layer's full weight.

    Scale: the mean over layers of the mean eigenvalue of ``S_out`` is 1, and in every layer the mean eigenvalue of
    ``S_in`` is 1. So the identity is a special case of the diagonal, this is one of the Kronecker form, and ``λ_T``
    means the same in all three.

    The model is left as it was found. Where ``torch.distributed`` is initialised, every process measures its share of
    the batches and all get the same result.

    Args:
        model: a causal language model with a LoRA adapter.
        completions: tokenised samples of the task, or a dataset with ``prompt`` and ``completion`` and a ``tokenizer``.
        tokenizer: needed for a dataset.
        kind: one of the above.
        rank: eigenpairs per side in the Kronecker form.
        batch_size: samples of one backward pass.
        max_length: tokens at which samples are cut off.
        seed: of the sketches.
        show_progress: show a bar with the remaining time.

    Returns:
        One for each layer of :func:`~loralign.lora.lora_layers`, float32 on the CPU.

    Raises:
        ConfigError: an unknown kind, a number below 1, or a dataset without tokenizer.
        DataError: there are no samples, one has no response within ``max_length``, or none has any gradient.
        AdapterError: the model has no adapter of plain LoRA.
        NonFiniteError: a loss is infinite or not a number.
    """
    if kind not in ("diagonal", "kronecker"):
        raise ConfigError(f"kind {kind!r} is unknown", fix="use 'diagonal' or 'kronecker'")
    for name, value in (("rank", rank), ("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise ConfigError(f"{name} {value!r} must be at least 1")
    layers = lora_layers(model)
    samples = _samples(completions, tokenizer, max_length)
    sums = []
    for layer in layers:
        tests: tuple[Tensor | None, Tensor | None] = (None, None)
        if kind == "kronecker":
            place = layer.B.device, working_dtype(layer.B)
            height, width = layer.shape
            tests = _test_matrix(height, rank, seed).to(*place), _test_matrix(width, rank, seed).to(*place)
        sums.append(CurvatureSums(layer.shape, *tests, device=layer.B.device))
    with measurable(model, "all-linear"):
        _measure(model, samples, batch_size, sums, show_progress)
    return _curvatures(sums, rank)


def _samples(completions: Sequence[Completion] | Dataset, tokenizer: Any, max_length: int) -> list[Completion]:
    if isinstance(completions, Dataset):
        if tokenizer is None:
            raise ConfigError("a dataset needs a tokenizer", place="estimate_curvature", fix="give tokenizer=")
        completions = tokenise_completions(completions, tokenizer, max_length)
    samples = [Completion(one.ids[:max_length], one.prompt_length, label=one.label, row=one.row) for one in completions]
    if not samples:
        raise DataError("there are no samples to estimate the task's curvature from")
    for sample in samples:
        if sample.response_length < 1:
            raise DataError(
                f"the response has no token within the first {max_length}",
                place=f"sample {sample.row}",
                fix="drop it, or raise max_length",
            )
    return samples


def _test_matrix(size: int, rank: int, seed: int) -> Tensor:
    return gaussian_test_matrix(size, min(size, rank + _OVERSAMPLING), sketch_seed(seed, _TEST_MATRICES, size))


def _measure(
    model: Any, samples: list[Completion], batch_size: int, sums: list[CurvatureSums], show_progress: bool
) -> None:
    """Add up all samples, over all processes."""
    grouped = dist.is_available() and dist.is_initialized()
    process, processes = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
    pad = getattr(model.config, "pad_token_id", None)
    batches = completion_batches(samples, batch_size, 0 if pad is None else int(pad))[process::processes]
    device = model.get_input_embeddings().weight.device
    grams = TokenGrams()
    capture = SampleCapture(model, lambda index, x, g: sums[index].add(x, g, grams))
    try:
        total = sum(len(batch.rows) for batch in batches)
        with tqdm(total=total, desc="estimating curvature", unit="sample", disable=not show_progress) as bar:
            for batch in batches:
                with torch.enable_grad():
                    losses = response_losses(model, batch.to(device), "mean")
                    _check_finite(losses, [samples[row] for row in batch.rows])
                    losses.sum().backward()  # type: ignore[no-untyped-call]
                capture.clear()
                grams.clear()
                bar.update(len(batch.rows))
    finally:
        capture.close()
    if grouped:
        for buffer in (buffer for one in sums for buffer in one.buffers()):
            dist.all_reduce(buffer)


def _check_finite(losses: Tensor, samples: list[Completion]) -> None:
    if not bool(losses.isfinite().all()):
        broken = samples[int((~losses.isfinite()).nonzero()[0])]
        raise NonFiniteError(
            "the response has a probability that is not finite",
            place=f"sample {broken.row}",
            fix="look for weights that are not finite, or load the model in another dtype",
        )


def _curvatures(sums: list[CurvatureSums], rank: int) -> list[TaskCurvature]:
    """Bring the sums to their scale; the number of samples cancels."""
    scale = math.fsum(float(one.output.diagonal.mean()) for one in sums) / len(sums)
    if not scale > 0:
        raise DataError("no sample has any gradient on the adapter's layers", place="completions")
    found = []
    for one in sums:
        side = None
        if one.input is not None:
            # A layer without any gradient has S_out = 0, and no direction of its input is special.
            mean = float(one.input.diagonal.mean())
            size = len(one.input.diagonal)
            empty = CurvatureFactor(torch.ones(size), torch.zeros(size, 0))
            side = one.input.factor(mean, rank) if mean > 0 else empty
        found.append(TaskCurvature(one.output.factor(scale, rank), side))
    return found
