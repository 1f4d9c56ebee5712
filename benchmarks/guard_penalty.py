"""Time and memory of the guard's penalty with its gradients, beside the same penalty by autograd on dense matrices.

SmolLM2-135M, LoRA of rank 16 on all 210 linear layers, a subspace of rank 32 in each (directions and update are made
up: neither changes the work). In every repeat each arm runs once, in a new random order; a ratio is the median over
repeats of the quotients within a repeat. Memory is what a process needs beyond what it held before its first call::

    python benchmarks/guard_penalty.py --repeats 5

The arms, each of which leaves gradients on ``A`` and ``B``:

- ``ours``: :class:`~loralign.guard.penalties.GuardPenalty` with all terms.
- ``ours, a quarter of the rows``: the same with ``row_fraction=0.25``.
- ``ours without overlap``: without the Riemannian term.
- ``dense``: what the formulas say, word for word, in float32: ``ΔW (m, n)`` and both of its parts in full, autograd.
- ``dense, layer by layer``: the same with a backward pass after every layer, so that one layer's graph is alive.
- ``dense without overlap``: without the Riemannian term.
- ``projection``: :func:`~loralign.guard.projection.project`, the constraint in place of the penalty.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from children import in_child
from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.guard.projection import project
from loralign.lora import LoraFactors, base_weight_rows, lora_layers
from loralign.models import load_model
from ratios import Comparison, add_output_options, compare, positive, show
from timing import Clock, interleave, machine

RANK = 16
DIRECTIONS = 32
MEMORY_ARMS = ("ours", "dense", "dense, layer by layer")
WEIGHTS = PenaltyWeights()
OPTIONS = PenaltyOptions()
NO_OVERLAP = PenaltyOptions(alpha=0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path, wheel or hub name; SmolLM2-135M-Instruct by default")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--warmup", type=positive, default=1, help="repeats that are not counted")
    parser.add_argument("--layers", type=positive, help="use the first so many layers only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds; see align_step.py")
    add_output_options(parser)
    arguments = parser.parse_args()
    memory = {arm: [in_child(child, arm, arguments)] for arm in MEMORY_ARMS}
    layers, subspaces = make_problem(arguments)
    check(layers, subspaces)
    clock = Clock(cpu=arguments.cpu_time)
    timed = {name: partial(_numbered, run) for name, run in arms(layers, subspaces).items()}
    interleave(clock, timed, repeats=arguments.repeats, warmup=arguments.warmup, seed=arguments.seed)
    settings = {
        **machine(),
        "layers": len(layers),
        "rank": RANK,
        "directions": DIRECTIONS,
        "repeats": arguments.repeats,
        "base dtype": str(layers[0].base.weight.dtype).removeprefix("torch."),
        "unit": "CPU s" if arguments.cpu_time else "s",
        **{f"MiB beyond the start, {arm}": round(values[0], 1) for arm, values in memory.items()},
    }
    show(arguments, table(clock.samples, memory), dict(clock.samples), settings)


def make_problem(arguments: argparse.Namespace) -> tuple[list[LoraFactors], list[LayerSubspace]]:
    """The layers of a model with a trained-looking adapter, and random directions with falling eigenvalues."""
    model: Any = load_model(arguments.model).model.to("cuda" if torch.cuda.is_available() else "cpu")
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    layers = lora_layers(get_peft_model(model, config))[: arguments.layers]
    generator = torch.Generator().manual_seed(arguments.seed)
    subspaces = []
    for layer in layers:
        with torch.no_grad():
            layer.B.copy_(0.02 * torch.randn(layer.B.shape, generator=generator))
        basis = torch.linalg.qr(torch.randn(layer.shape[0], DIRECTIONS, generator=generator)).Q
        eigenvalues = torch.rand(DIRECTIONS, generator=generator).sort(descending=True).values
        subspaces.append(
            LayerSubspace(basis.to(layer.B.device), eigenvalues, 2 * float(eigenvalues.sum()), layer.shape[1])
        )
    return layers, subspaces


def arms(layers: list[LoraFactors], subspaces: list[LayerSubspace]) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    ours = GuardPenalty(layers, subspaces, 1.0, OPTIONS)
    sampled = GuardPenalty(layers, subspaces, 1.0, PenaltyOptions(row_fraction=0.25))
    without = GuardPenalty(layers, subspaces, 1.0, NO_OVERLAP)
    return {
        "ours": lambda: ours.backward(WEIGHTS),
        "ours, a quarter of the rows": lambda: sampled.backward(WEIGHTS),
        "ours without overlap": lambda: without.backward(WEIGHTS),
        "dense": lambda: dense_backward(layers, subspaces, OPTIONS),
        "dense, layer by layer": lambda: dense_backward(layers, subspaces, OPTIONS, at_once=False),
        "dense without overlap": lambda: dense_backward(layers, subspaces, NO_OVERLAP),
        "projection": lambda: project(layers, subspaces, 1e-9),
    }


def _numbered(run: Callable[[], Any], repeat: int) -> None:
    run()


def dense_backward(
    layers: Sequence[LoraFactors], subspaces: Sequence[LayerSubspace], options: PenaltyOptions, at_once: bool = True
) -> float:
    """The penalty by autograd, in one graph over all layers or in one for each; returns its value."""
    penalties = (dense_penalty(*pair, options, len(layers)) for pair in zip(layers, subspaces, strict=True))
    if at_once:
        total = torch.stack(list(penalties)).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total.item()
    value = 0.0
    for penalty in penalties:
        penalty.backward()  # type: ignore[no-untyped-call]
        value += penalty.item()
    return value


def dense_penalty(layer: LoraFactors, subspace: LayerSubspace, options: PenaltyOptions, layers: int) -> Tensor:
    """One layer's part of the penalty with the hard projector, on dense matrices (docs/adapting.md, Penalties)."""
    basis, eigenvalues = subspace.basis, subspace.eigenvalues.to(layer.B.device)
    update = layer.scaling * layer.B @ layer.A
    coordinates = basis.mT @ update
    aligned = basis @ coordinates
    task = update - aligned
    alignment = (eigenvalues.sqrt()[:, None] * coordinates).square().sum()
    stability = task.square().sum()
    geodesic = (aligned @ task.mT).square().sum() / (aligned.square().sum() * task.square().sum())
    collision = (1 - options.alpha) * geodesic / layers
    if options.alpha > 0:
        gate = ((base_weight_rows(layer, 0, len(layer.B)) + update).abs() - options.tau).sigmoid()
        collision = collision + options.alpha * ((1 + options.beta * gate) * (aligned * task).abs()).sum()
    return WEIGHTS.alignment * alignment + WEIGHTS.stability * stability + WEIGHTS.collision * collision


def check(layers: list[LoraFactors], subspaces: list[LayerSubspace]) -> None:
    """Both sides compute the same thing.

    Raises:
        RuntimeError: they do not.
    """
    found = GuardPenalty(layers[:7], subspaces[:7], 1.0, OPTIONS).evaluate(WEIGHTS, gradients=False).total
    expected = dense_backward(layers[:7], subspaces[:7], OPTIONS)
    if not math.isclose(found, expected, rel_tol=1e-4):
        raise RuntimeError(f"the penalty is {found}, and by the dense formula {expected}")


def child(arm: str, arguments: argparse.Namespace, sender: Connection) -> None:
    """Make the gradients once and send the peak over what was held before, in MiB; the subspaces count as held."""
    layers, subspaces = make_problem(arguments)
    if torch.cuda.is_available():
        warm_up(layers[0])
    before = start_peak()
    arms(layers, subspaces)[arm]()
    sender.send(peak() - before)


def warm_up(layer: LoraFactors) -> None:
    """Let the GPU's matrix library allocate its workspaces, which no arm is to be charged with."""
    (layer.B @ layer.A).sum().backward()  # type: ignore[no-untyped-call]
    layer.A.grad = layer.B.grad = None


def start_peak() -> float:
    """Forget earlier peaks; returns the MiB in use.

    Raises:
        RuntimeError: there is neither a GPU nor Linux' account of the process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise RuntimeError(f"peak memory cannot be measured here: {error}") from error
    return _status("VmRSS")


def peak() -> float:
    """MiB at most in use since :func:`start_peak`."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 2**10


def table(samples: dict[str, list[float]], memory: dict[str, list[float]]) -> list[Comparison]:
    """Ours against the dense peer."""
    return [
        compare("all terms: ours / dense", samples["ours"], samples["dense"]),
        compare("all terms: ours / dense, layer by layer", samples["ours"], samples["dense, layer by layer"]),
        compare("without overlap: ours / dense", samples["ours without overlap"], samples["dense without overlap"]),
        compare("a quarter of the rows / all rows", samples["ours, a quarter of the rows"], samples["ours"]),
        compare("memory: ours / dense", memory["ours"], memory["dense"]),
        compare("memory: ours / dense, layer by layer", memory["ours"], memory["dense, layer by layer"]),
    ]


if __name__ == "__main__":
    main()
