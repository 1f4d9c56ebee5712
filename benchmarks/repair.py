"""Time of repairing a whole adapter, without loading and measuring, beside the peers and a dense repair.

SmolLM2-135M, LoRA of rank 16 on all 210 linear layers, a subspace of rank 32 in each (directions and update are made
up: neither changes the work). In every repeat each arm runs once, in a new random order, and is undone outside the
time; a ratio is the median over repeats of the quotients within a repeat::

    python benchmarks/repair.py --repeats 9

The arms:

- ``fisher``: :func:`loralign.guard.repair.repair` as it comes, its report included.
- ``per layer``: with strengths from the layers' Fisher energy.
- ``random``: the control, the drawing of its subspace included.
- ``scale`` and ``safe_lora``: the peers, through the same function.
- ``intruder``: PEFT's own, only with ``--intruder`` and once, since it decomposes every weight matrix three times.
- ``dense``: what the formula says, word for word: ``P (m, m)`` and ``ΔW (m, n)`` in full, ``(I − P) ΔW``, and back to
  two factors by a randomised SVD.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from loralign.guard.peers import PeerOptions
from loralign.guard.repair import repair
from loralign.guard.subspace import AlignmentSubspace, LayerSubspace, SubspaceInfo
from loralign.lora import LoraFactors, canonical_name, lora_layers
from loralign.models import load_model
from ratios import Comparison, add_output_options, compare, positive, show
from timing import Clock, interleave, machine

RANK = 16
DIRECTIONS = 32
SECONDS = 5.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path, wheel or hub name; SmolLM2-135M-Instruct by default")
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--warmup", type=positive, default=1, help="repeats that are not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--intruder", action="store_true", help="time PEFT's intruder reduction too, once")
    add_output_options(parser)
    arguments = parser.parse_args()
    model, unaligned = make_models(arguments.model, arguments.seed)
    clock = Clock()
    runs = arms(model, unaligned, clock, arguments.seed)
    slow = {"intruder": runs.pop("intruder")}
    interleave(clock, runs, repeats=arguments.repeats, warmup=arguments.warmup, seed=arguments.seed)
    if arguments.intruder:
        interleave(clock, slow, repeats=1, warmup=0, seed=arguments.seed)
    samples = {name.partition("/")[0]: values for name, values in clock.samples.items() if name.endswith("/repair")}
    settings = {
        **machine("peft"),
        "layers": len(lora_layers(model)),
        "rank": RANK,
        "directions": DIRECTIONS,
        "repeats": arguments.repeats,
        "unit": "s",
    }
    show(arguments, table(samples), samples, settings)


def make_models(name: str | None, seed: int) -> tuple[Any, Any]:
    """The model with a trained-looking adapter, and its base before a made-up alignment."""
    base = load_model(name).model.to("cuda" if torch.cuda.is_available() else "cpu")
    unaligned = copy.deepcopy(base)
    model = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(seed)
    others = dict(unaligned.named_modules())
    with torch.no_grad():
        for layer in lora_layers(model):
            layer.B.copy_(0.02 * torch.randn(layer.B.shape, generator=generator))
            weight = others[canonical_name(layer.name)].weight
            weight.add_((0.01 * torch.randn(weight.shape, generator=generator)).to(weight))
    return model, unaligned


def make_subspace(model: Any, seed: int) -> AlignmentSubspace:
    """Random directions with falling eigenvalues for every layer."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer in lora_layers(model):
        basis = torch.linalg.qr(torch.randn(layer.shape[0], DIRECTIONS, generator=generator)).Q
        eigenvalues = torch.rand(DIRECTIONS, generator=generator).sort(descending=True).values
        layers[canonical_name(layer.name)] = LayerSubspace(basis, eigenvalues, float(eigenvalues.sum()), layer.shape[1])
    return AlignmentSubspace(layers, SubspaceInfo(kind="random", seed=seed))


def arms(model: Any, unaligned: Any, clock: Clock, seed: int) -> dict[str, Callable[[int], None]]:
    """What is timed, by name; the part ``repair`` of each arm leaves out that the adapter is put back."""
    layers, subspace = lora_layers(model), make_subspace(model, seed)
    start = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]

    def run(work: Callable[[], object], repeat: int) -> None:
        with clock.part("repair"):
            work()
        with torch.no_grad():
            for layer, (A, B) in zip(layers, start, strict=True):
                layer.A.copy_(A)
                layer.B.copy_(B)

    # Every layer is projected, the most that Safe LoRA can have to do.
    all_layers = PeerOptions(threshold=1.0)
    works: dict[str, Callable[[], object]] = {
        "fisher": lambda: repair(model, subspace),
        "per layer": lambda: repair(model, subspace, per_layer=True, strength=0.5),
        "random": lambda: repair(model, subspace, method="random", seed=seed),
        "scale": lambda: repair(model, subspace, method="scale", strength=0.5),
        "safe_lora": lambda: repair(model, subspace, method="safe_lora", unaligned=unaligned, options=all_layers),
        "intruder": lambda: repair(model, subspace, method="intruder"),
        "dense": lambda: dense_repair(layers, [subspace.layers[canonical_name(layer.name)] for layer in layers]),
    }
    return {name: partial(run, work) for name, work in works.items()}


@torch.no_grad()
def dense_repair(layers: list[LoraFactors], subspaces: list[LayerSubspace]) -> None:
    """``ΔW ← (I − P) ΔW`` with every matrix in full, then ``ΔW ≈ B A`` by a randomised SVD of the adapter's rank."""
    for layer, subspace in zip(layers, subspaces, strict=True):
        update = layer.scaling * layer.B.float() @ layer.A.float()
        basis = subspace.basis.to(update)
        projector: Tensor = basis @ basis.mT
        U, S, V = torch.svd_lowrank(update - projector @ update, q=layer.rank)
        layer.B.copy_(U * S / layer.scaling)
        layer.A.copy_(V.mT)


def table(samples: dict[str, list[float]]) -> list[Comparison]:
    """The repair against its limit and its peers."""
    limit = [SECONDS] * len(samples["fisher"])
    rows = [compare(f"{name} / {SECONDS:g} s", samples[name], limit, 1.0) for name in ("fisher", "per layer", "random")]
    return rows + [
        compare(f"fisher / {name}", samples["fisher"], samples[name]) for name in ("scale", "safe_lora", "dense")
    ]


if __name__ == "__main__":
    main()
