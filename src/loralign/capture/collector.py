"""Per-objective gradients of every LoRA layer from one ordinary backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loralign.capture.accumulator import LayerAccumulator, gramians_of, invertible_cores
from loralign.capture.labels import BatchLabels
from loralign.capture.probe import LayerProbe, owners
from loralign.capture.rows import BatchRows
from loralign.capture.sketch import sketch_matrix, sketch_seed
from loralign.capture.statistics import GradientStatistics
from loralign.errors import AdapterError, ConfigError, StateError
from loralign.lora import Basis, LoraFactors, column_bases, lora_layers

MAX_OBJECTIVES = 16


class GradientCapture:
    """Collects, during backward, what LoRA's geometry does to the gradient of every objective.

    Samples do not mix inside a transformer, so the tokens of the samples labelled ``i`` give
    ``G_i = Σ g_t x_tᵀ (m, n)``, and a batch that holds several objectives yields all of them from one backward pass.
    Only compressed sums are kept (:class:`~loralign.capture.accumulator.LayerAccumulator`): the part that LoRA can
    reach exactly, and a Gaussian sketch of the rest (docs/concepts.md, accessible part and full part).

    Example:
        >>> capture = GradientCapture(peft_model, ["helpful", "harmless"])       # doctest: +SKIP
        >>> loss = dpo_loss(peft_model, batch)                                   # doctest: +SKIP
        >>> with capture(batch["objective_ids"]):                                # doctest: +SKIP
        ...     loss.backward()
        >>> capture.statistics(normalise="mean").attenuation()                   # doctest: +SKIP

    Args:
        model: a PEFT model with LoRA layers; they are found once, here. It is to be itself the one that is called:
            layers that see flattened tokens do not tell how many rows the batch has, so that is read off the model's
            own input. A capture whose block a training cut off has left open on its layers is closed.
        objectives: names of the objectives, 1 to 16.
        sketch_size: columns ``k`` of the sketch; its relative standard error on the residual energy of one layer is at
            most ``√(2/k)`` and averages out over layers.
        deflation: input directions per layer, found by the measurement before, along which the residual is measured
            exactly and not by the sketch. A transformer's massive activations put most of every gradient's energy into
            one input direction per layer that hardly moves between batches, and one such direction is worth many
            columns of sketch (docs/concepts.md). The first measurement has none yet.
        exact: keep ``G_i`` itself, ``(m, n)`` per layer and objective, in place of the sketch: the reference.
        seed: seed of the sketches.

    Raises:
        ConfigError: no objective, too many, a repeated name, a sketch size below 1, or more shared directions than the
            sketches have rows or the layers inputs.
        AdapterError: the model's adapter is not plain LoRA, or lies on several devices.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[str],
        sketch_size: int = 32,
        exact: bool = False,
        seed: int = 0,
        deflation: int = 1,
    ) -> None:
        names = tuple(objectives)
        if not 1 <= len(names) <= MAX_OBJECTIVES or len(set(names)) != len(names):
            raise ConfigError(f"objectives {list(names)!r} must be 1 to {MAX_OBJECTIVES} different names")
        if deflation < 0:
            raise ConfigError(f"deflation {deflation} must not be negative", fix="0 turns it off, 1 is the default")
        if sketch_size < 1:
            raise ConfigError(f"sketch_size {sketch_size} must be at least 1", fix="32 is the default")
        self.objectives = names
        self.sketch_size = sketch_size
        self.exact = exact
        self.deflation = 0 if exact else deflation
        self.seed = seed
        self.draw = 0
        self.enabled = True
        self.layers: list[LoraFactors] = lora_layers(model)
        _check_one_device(self.layers)
        _check_deflation(self.deflation, len(names) * sketch_size, min(layer.shape[1] for layer in self.layers))
        _close_abandoned(self.layers)
        self._labels: BatchLabels | None = None
        self._row_shape: tuple[int, int] | None = None
        self._sums: list[LayerAccumulator | None] = []
        self._bases: list[Basis] = []
        self._invertible: list[bool] = []
        self._directions: list[Tensor] = []
        self._versions: list[int] = []
        self._samples = torch.zeros(len(names), dtype=torch.float64)
        self._tokens = torch.zeros(len(names), dtype=torch.float64)
        self._shares = torch.zeros(len(names), dtype=torch.float64)
        self._rows = BatchRows(model)
        self._probes = [
            LayerProbe(layer, partial(self._collect, index), lambda: self.enabled)
            for index, layer in enumerate(self.layers)
        ]

    @contextmanager
    def __call__(
        self, objective_ids: Tensor, *, loss_scale: float = 1.0, sample_weights: Tensor | None = None
    ) -> Iterator[None]:
        """Measure the backward passes run inside the block; several blocks accumulate until :meth:`reset`.

        Args:
            objective_ids: ``(batch,)`` integers in ``0..K−1``, or −1 for a sample of no objective. For stacked batches
                such as DPO's ``[chosen; rejected]`` one id per pair is enough.
            loss_scale: factor by which the mean over the batch was multiplied before backward, such as
                ``1/gradient_accumulation_steps`` under transformers' ``Trainer``; only ``normalise="mean"`` reads it.
            sample_weights: ``(batch,)`` weights of the samples in that mean, such as token counts where the loss is a
                mean over tokens; equal by default.

        Raises:
            DataError: ids out of range or of the wrong shape.
            StateError: blocks are nested, the capture is closed, or the adapter changed since the first block.
        """
        self.begin(objective_ids, loss_scale=loss_scale, sample_weights=sample_weights)
        try:
            yield
        finally:
            self.end()

    def begin(self, objective_ids: Tensor, *, loss_scale: float = 1.0, sample_weights: Tensor | None = None) -> None:
        """Open a block by hand, for callbacks that cannot wrap the backward pass; see :meth:`__call__`."""
        if self._labels is not None:
            raise StateError("capture blocks cannot be nested", fix="close the first one with end()")
        if not self._probes:
            raise StateError("the capture is closed", fix="make a new GradientCapture")
        labels = BatchLabels.from_tensor(objective_ids, len(self.objectives))
        self._prepare()
        counts = torch.tensor(labels.counts(len(self.objectives)), dtype=torch.float64)
        self._samples += counts
        self._shares += loss_scale * labels.shares(len(self.objectives), sample_weights)
        self._labels, self._row_shape = labels, None

    def end(self) -> None:
        """Close the block opened by :meth:`begin`."""
        self._labels = None

    def reset(self, directions: Sequence[Tensor] | None = None) -> None:
        """Forget the sums and draw new sketches for what comes next; what they said of shared directions is kept.

        Args:
            directions: orthonormal input directions ``(n, p)`` per layer along which the next measurement is to be
                exact, in place of those that this one has found; :meth:`statistics` can then take them out.
        """
        if directions is not None:
            self._directions = [] if self.exact else list(directions)
        elif self._sums and self.deflation and float(self._shares.sum()) > 0:
            self._directions = [layer.leading_directions(self.deflation) for layer in self._accumulators]
        elif not self.deflation:
            self._directions = []
        self._sums.clear()
        self._bases.clear()
        self._versions.clear()
        for counter in (self._samples, self._tokens, self._shares):
            counter.zero_()
        self.draw += 1

    def close(self) -> None:
        """Remove every hook; the model is then as it was found."""
        for probe in self._probes:
            probe.remove()
        self._probes.clear()
        self._rows.close()
        self._sums.clear()
        self._bases.clear()
        self.end()

    @property
    def in_block(self) -> bool:
        """Whether a block is open: between :meth:`begin` and :meth:`end`."""
        return self._labels is not None

    @property
    def pending(self) -> bool:
        """Whether something has been captured since the last :meth:`reset`."""
        return bool(self._sums)

    @property
    def shares(self) -> Tensor:
        """Share of the back-propagated mean loss that each objective's samples had, ``(K,)`` float64."""
        return self._shares.clone()

    def statistics(self, normalise: str | None = None, without: Sequence[Tensor] | None = None) -> GradientStatistics:
        """The Gramians of everything captured since the last :meth:`reset`.

        Args:
            normalise: ``None`` for the gradients of what was back-propagated; ``"mean"`` divides out each objective's
                share of the batch, which turns them into gradients of every objective's own mean loss.
            without: orthonormal input directions ``V (n, p)`` per layer; the Gramians are then those of
                ``G_i (I − V Vᵀ)``. But for exact mode they must be those that :meth:`reset` was given before.

        Raises:
            StateError: nothing has been captured, or nothing along the directions to take out.
            ConfigError: an unknown ``normalise``.
        """
        if normalise not in (None, "mean"):
            raise ConfigError(f"normalise {normalise!r} is unknown", fix="use None or 'mean'")
        if not self._sums:
            raise StateError("nothing was captured", fix="run a backward pass inside 'with capture(ids):'")
        if without is None:
            parts = gramians_of(self._accumulators)
        else:
            # One by one, since the sums of what remains take as much memory again.
            pairs = zip(self._accumulators, without, strict=True)
            parts = [gramians_of([layer.without(directions)])[0] for layer, directions in pairs]
        statistics = GradientStatistics(
            objectives=self.objectives,
            layer_names=tuple(layer.name for layer in self.layers),
            layer_full=torch.stack([part.full for part in parts]),
            layer_accessible=torch.stack([part.accessible for part in parts]),
            layer_euclidean=torch.stack([part.euclidean for part in parts]),
            samples=self._samples.clone(),
            tokens=self._tokens.clone(),
        )
        return statistics if normalise is None else statistics.scaled(self._inverse_shares())

    def step_inner(self, steps: Sequence[tuple[Tensor, Tensor]], normalise: str | None = None) -> Tensor:
        """First-order change of every objective's loss under a step of the factors, ``(K,)`` float64.

        Args:
            steps: ``(ΔA (r, n), ΔB (m, r))`` per layer, in the order of :attr:`layers`.
            normalise: as in :meth:`statistics`.
        """
        pairs = zip(self._accumulators, steps, strict=True)
        total = torch.stack([layer.inner_with_step(*step) for layer, step in pairs]).sum(dim=0).cpu()
        return total if normalise is None else total * self._inverse_shares()

    def sketches(self) -> list[Tensor]:
        """Per layer ``Ψᵀ(I − Π_B) G_i`` ``(K, k, n)``, or ``(I − Π_B) G_i`` ``(K, m, n)`` in exact mode."""
        if not self._sums:
            raise StateError("nothing was captured", fix="run a backward pass inside 'with capture(ids):'")
        return [
            (layer.sketch if layer.exact is None else layer.exact - layer.basis_b.Q @ layer.left) / layer.scaling
            for layer in self._accumulators
        ]

    def stacks(self) -> list[Tensor]:
        """Per layer a matrix ``S_i (K, c, n)`` with ``E[S_iᵀ S_i] = G_iᵀ G_i``, so that its rows show ``G_i``'s inputs.

        ``[Q_Bᵀ; Ψᵀ(I − Π_B)] G_i`` with ``c = r + k``: unlike :meth:`sketches`, whole; ``G_i`` itself in exact mode.
        """
        if not self._sums:
            raise StateError("nothing was captured", fix="run a backward pass inside 'with capture(ids):'")
        return [layer.stack / layer.scaling for layer in self._accumulators]

    def all_reduce(self, group: Any = None) -> None:
        """Sum everything captured over the processes of a group, once, before the statistics are read."""
        counters = torch.stack([self._samples, self._tokens, self._shares])
        for buffer in [buffer for layer in self._accumulators for buffer in layer.buffers()]:
            dist.all_reduce(buffer, group=group)
        device = self.layers[0].A.device
        counters = counters.to(device)
        dist.all_reduce(counters, group=group)
        self._samples, self._tokens, self._shares = counters.cpu().unbind()

    def tensor_state(self) -> dict[str, Tensor]:
        """The shared directions found so far, by layer number: the tensors that belong to :meth:`state_dict`.

        Sums not yet read count as a finished measurement.
        """
        if self._sums and self.deflation and float(self._shares.sum()) > 0:
            self._directions = [layer.leading_directions(self.deflation) for layer in self._accumulators]
        return {f"directions.{index}": direction for index, direction in enumerate(self._directions)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same sketches: a JSON-ready mapping."""
        # Sums that have not been reset yet are not saved, so the next draw follows them.
        draw = self.draw + int(self.pending)
        return {"version": 1, "seed": self.seed, "draw": draw, "sketch_size": self.sketch_size}

    def load_state_dict(self, state: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        """Continue the sequence of sketches of a saved state.

        Raises:
            StateError: another version or sketch size, or directions of other layers.
        """
        if state.get("version") != 1 or state.get("sketch_size") != self.sketch_size:
            raise StateError(f"capture state {state!r} does not fit", fix=f"resume with sketch_size {self.sketch_size}")
        self.seed, self.draw = int(state["seed"]), int(state["draw"])
        found = [(tensors or {}).get(f"directions.{index}") for index in range(len(self.layers))]
        directions = [one for one in found if one is not None]
        fits = [
            d.shape == (layer.A.shape[1], self.deflation) for d, layer in zip(directions, self.layers, strict=False)
        ]
        if directions and not (len(directions) == len(self.layers) and all(fits)):
            raise StateError("the saved shared directions do not fit the adapter's layers")
        self._directions = [one.to(layer.A.device) for one, layer in zip(directions, self.layers, strict=False)]

    def _inverse_shares(self) -> Tensor:
        return torch.where(self._shares > 0, 1 / self._shares, torch.zeros_like(self._shares))

    def _prepare(self) -> None:
        versions = [factor._version for layer in self.layers for factor in (layer.A, layer.B)]
        if self._sums:
            if versions != self._versions:
                raise StateError(
                    "the adapter changed between two capture blocks", fix="call capture.reset() after a step"
                )
            return
        self._versions = versions
        self._bases = column_bases([f for layer in self.layers for f in (layer.A.detach().mT, layer.B.detach())])
        self._invertible = invertible_cores(self._bases[::2])
        self._sums = [None] * len(self.layers)

    @property
    def _accumulators(self) -> list[LayerAccumulator]:
        """The sums of every layer; those of a layer that no backward pass has reached are zero."""
        return [self._accumulator(index) for index in range(len(self._sums))]

    def _accumulator(self, index: int) -> LayerAccumulator:
        """The sums of one layer, made when its first gradient comes.

        By then backward has let go of the activations behind it, so the sums take the place of memory just freed.
        """
        found = self._sums[index]
        if found is None:
            layer, basis_a, basis_b = self.layers[index], self._bases[2 * index], self._bases[2 * index + 1]
            sketch = None
            if not self.exact:
                seed = sketch_seed(self.seed, self.draw, index)
                dtype, device = basis_b.Q.dtype, layer.B.device
                sketch = sketch_matrix(layer.B.shape[0], self.sketch_size, seed=seed, dtype=dtype, device=device)
            directions = self._directions[index] if self._directions else None
            found = LayerAccumulator(
                layer, basis_a, basis_b, sketch, len(self.objectives), directions, self._invertible[index]
            )
            self._sums[index] = found
        return found

    def _collect(self, index: int, x: Tensor, inner: Tensor, gradient: Tensor) -> None:
        if self._labels is None:
            return
        place = self.layers[index].name
        if x.ndim != 2:
            self._row_shape = (x.shape[0], x.shape[1]) if x.ndim == 3 else self._row_shape
        elif self._row_shape is not None and x.shape[0] != self._row_shape[0] * self._row_shape[1]:
            raise StateError(
                f"the layer saw {x.shape[0]} rows of a batch of {self._row_shape}",
                place=place,
                fix="tokens that are routed to experts cannot be told apart; leave this module out of target_modules",
            )
        runs = self._labels.runs_of(x, self._rows.count, place)
        self._accumulator(index).add(x, inner, gradient, runs)
        if index == 0:
            per_row = x.shape[1] if x.ndim == 3 else 1
            for start, stop, objective in runs:
                self._tokens[objective] += (stop - start) * per_row


def _check_one_device(layers: Sequence[LoraFactors]) -> None:
    devices = sorted({str(factor.device) for layer in layers for factor in (layer.A, layer.B)})
    if len(devices) > 1:
        raise AdapterError(
            f"the adapter's layers lie on several devices, {', '.join(devices)}, and their sums are added up on one",
            fix="load the model on one device, without a device_map that splits it",
        )


def _check_deflation(deflation: int, rows: int, inputs: int) -> None:
    if deflation > min(rows, inputs):
        raise ConfigError(
            f"deflation {deflation} is more than the {rows} rows of the sketches or the {inputs} inputs of a layer",
            fix="1 is the default; more needs a larger sketch_size",
        )


def _close_abandoned(layers: Sequence[LoraFactors]) -> None:
    """Close captures whose block is still open: of an interrupted training, whose ids fit no batch to come."""
    for probe in owners(hook for layer in layers for hook in layer.up._forward_hooks.values()):
        if isinstance(probe, LayerProbe) and isinstance(probe.owner, GradientCapture) and probe.owner.in_block:
            probe.owner.close()
