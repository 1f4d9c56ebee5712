"""Sums over batches of samples, process by process, and what becomes of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

import loralign
from loralign.capture.samples import SampleCapture
from loralign.capture.sketch import sketch_seed
from loralign.data.completions import Completion, CompletionBatch, completion_batches
from loralign.errors import NonFiniteError, StateError
from loralign.guard.fisher_checkpoint import FisherCheckpoint, FisherProgress
from loralign.guard.fisher_options import FisherOptions
from loralign.guard.identity import fingerprint, layer_identity
from loralign.guard.model_sums import ModelSums
from loralign.guard.responses import response_losses, sample_responses
from loralign.guard.selection import select_layers
from loralign.guard.subspace import AlignmentSubspace, SubspaceInfo
from loralign.lora import canonical_name, lora_layers

# A stream of random numbers beside those of the test matrices and of sampled responses.
_HALVES = 3


class FisherEstimation:
    """Sums over all batches of this process, and what becomes of them."""

    def __init__(self, model: Any, samples: list[Completion], options: FisherOptions, show_progress: bool) -> None:
        self.model, self.samples, self.options = model, samples, options
        grouped = dist.is_available() and dist.is_initialized()
        self.process, self.processes = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        self.show_progress = show_progress and self.process == 0
        self.device = model.get_input_embeddings().weight.device
        self.pad_id = _pad_id(model)
        self.halves = _halves(samples, options.seed)
        self.positions = getattr(model.config, "max_position_embeddings", None)
        batches = completion_batches(samples, options.batch_size, self.pad_id, self.positions)
        self.batches = batches[self.process :: self.processes]
        self.max_new_tokens = max(len(sample.ids) - sample.prompt_length for sample in samples)
        layers = lora_layers(model)
        self.identities = {canonical_name(one.name): layer_identity(one.base) for one in layers}
        self.sums = ModelSums(layers, options)
        self.progress = FisherProgress()
        self._split = 0
        # Last, since whoever makes an estimation can take its hooks off only once it has it.
        self.capture = SampleCapture(model, self._consume)

    def run(self, directory: Path | None, every: int) -> None:
        """Go through all batches that are not measured yet, and add up over processes."""
        store = None if directory is None else FisherCheckpoint(directory, self._fingerprint(), self.process)
        if store is not None:
            self._resume(store)
        passes = self.options.sketch_passes if self.sums.sketched else 1
        with tqdm(
            total=passes * sum(len(batch.rows) for batch in self.batches),
            initial=self.progress.samples,
            desc="estimating Fisher",
            unit="sample",
            disable=not self.show_progress,
        ) as bar:
            while True:
                self._one_pass(store, every, bar)
                if self.processes > 1:
                    self._add_up()
                self.progress.passes, self.progress.batches = self.progress.passes + 1, 0
                if self.progress.passes == passes:
                    break
                self.sums.next_pass()
        if store is not None:
            store.remove()

    def _resume(self, store: FisherCheckpoint) -> None:
        self.progress, tensors = store.load()
        if tensors:
            self.sums.load(tensors, self.progress.passes)
        if self.processes > 1:
            stages = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.processes)]
            dist.all_gather(stages, torch.tensor([self.progress.passes], device=self.device))
            if len({int(stage) for stage in stages}) > 1:
                raise StateError(
                    "the processes were interrupted in different passes", place=str(store.path.parent), fix="remove it"
                )

    def _one_pass(self, store: FisherCheckpoint | None, every: int, bar: Any) -> None:
        progress = self.progress
        for batch in self.batches[progress.batches :]:
            tokens = self._measure(batch)
            progress.tokens += tokens if progress.passes == 0 else 0
            progress.samples += len(batch.rows)
            progress.batches += 1
            bar.update(len(batch.rows))
            if store is not None and progress.batches % every == 0:
                store.save(progress, self.sums.tensors())

    def _add_up(self) -> None:
        self.sums.all_reduce()
        if self.progress.passes == 0:
            count = torch.tensor([self.progress.tokens], device=self.device)
            dist.all_reduce(count)
            self.progress.tokens = int(count)

    def finish(self, name: str | None, revision: str | None) -> AlignmentSubspace:
        """Eigenvectors, ranks and the record of where they come from."""
        counts = [self.halves.count(half) for half in (0, 1)]
        layers = select_layers(self.identities, self.sums.layers, counts, self.options)
        widths = {0 if one.test is None else one.test.shape[1] for one in self.sums.layers}
        info = SubspaceInfo(
            model=name,
            revision=revision,
            fingerprint=fingerprint(self.identities),
            data_fingerprint=data_fingerprint(self.samples),
            kind=self.options.kind,
            method="exact" if widths == {0} else "mixed" if 0 in widths else "sketched",
            reduction=self.options.reduction,
            samples=len(self.samples),
            tokens=self.progress.tokens,
            energy=self.options.energy if self.options.rank is None else None,
            sketch_width=max(widths),
            half_agreement=math.fsum(one.half_agreement or 0.0 for one in layers.values()) / len(layers),
            seed=self.options.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=loralign.__version__,
            passes=self.progress.passes,
            response_tokens=self.options.response_tokens,
        )
        return AlignmentSubspace(layers, info)

    def _measure(self, batch: CompletionBatch) -> int:
        """Add one batch; returns its number of response tokens."""
        rows = sorted(batch.rows, key=lambda row: (self.halves[row], row))
        if self.options.kind == "sampled":
            batch = self._drawn(rows)
        order = [batch.rows.index(row) for row in rows]
        self._split = sum(self.halves[row] == 0 for row in rows)
        ids, mask, labels = (one[order] for one in (batch.input_ids, batch.attention_mask, batch.labels))
        placed = CompletionBatch(ids, mask, labels, rows).to(self.device)
        with torch.enable_grad():
            losses = response_losses(self.model, placed, self.options.reduction)
            if not bool(losses.isfinite().all()):
                broken = rows[int((~losses.isfinite()).nonzero()[0])]
                raise NonFiniteError(
                    "the response has a probability that is not finite",
                    place=f"sample {self.samples[broken].row}",
                    fix="look for weights that are not finite, or load the model in another dtype",
                )
            losses.sum().backward()  # type: ignore[no-untyped-call]
        self.capture.clear()
        self.sums.clear()
        return int((placed.labels[:, 1:] != -100).sum())

    def _drawn(self, rows: list[int]) -> CompletionBatch:
        drawn = sample_responses(
            self.model,
            [self.samples[row] for row in rows],
            rows,
            max_length=self.options.max_length,
            max_new_tokens=self.max_new_tokens,
            pad_id=self.pad_id,
            seed=self.options.seed,
        )
        (batch,) = completion_batches(drawn, len(drawn), self.pad_id, self.positions)
        return replace(batch, rows=[rows[position] for position in batch.rows])

    def _consume(self, index: int, x: Tensor, g: Tensor) -> None:
        self.sums.add(index, x, g, self._split)

    def _fingerprint(self) -> str:
        """Of everything that the sums depend on."""
        digest = hashlib.sha256()
        place = [self.process, self.processes]
        settings = [asdict(self.options), place, fingerprint(self.identities), data_fingerprint(self.samples)]
        digest.update(json.dumps(settings).encode())
        for layer in self.capture.layers:
            for factor in (layer.A, layer.B):
                digest.update(factor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()


def data_fingerprint(samples: Sequence[Completion]) -> str:
    """SHA-256 of the samples' token ids and prompt lengths, in their order."""
    return hashlib.sha256(json.dumps([[one.prompt_length, one.ids] for one in samples]).encode()).hexdigest()


def _halves(samples: Sequence[Completion], seed: int) -> list[int]:
    """0 or 1 for every sample: at random, with every label in both halves alike and sizes that differ by at most 1."""
    generator = torch.Generator().manual_seed(sketch_seed(seed, _HALVES, 0))
    shuffled = torch.randperm(len(samples), generator=generator).tolist()
    halves = [0] * len(samples)
    for position, index in enumerate(sorted(shuffled, key=lambda one: samples[one].label)):
        halves[index] = position % 2
    return halves


def _pad_id(model: Any) -> int:
    pad = getattr(model.config, "pad_token_id", None)
    return 0 if pad is None else int(pad)
