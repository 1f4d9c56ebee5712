"""Time of a Fisher estimation, as a ratio to forward and backward over the same samples.

SmolLM2-135M, 64 bundled prompts with their responses, half of them unsafe, in the same batches. In every repeat each
arm runs once, in a new random order; a ratio is the median over repeats of the quotients within a repeat::

    python benchmarks/fisher.py --repeats 5

The arms:

- ``forward + backward``: the samples' losses on the model with plain LoRA of rank 16 on all linear layers, whose
  gradients are left on the factors, as in training.
- ``auto``: ``estimate_fisher`` on that model with its default settings, from tokenised samples to subspaces.
- ``auto, no adapter``: the same on the model without an adapter.
- with ``--all``, ``sketched`` and ``exact``: the same on the model with LoRA by these methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from loralign.data.alignment import load_alignment_data
from loralign.data.completions import Completion, completion_batches, tokenise_completions
from loralign.guard import estimate_fisher
from loralign.guard.responses import response_losses
from loralign.models import load_model
from ratios import Comparison, add_output_options, compare, positive, show
from timing import Clock, interleave, machine

RANK = 16
BASELINE = "forward + backward"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path, wheel or hub name; SmolLM2-135M-Instruct by default")
    parser.add_argument("--samples", type=positive, default=64)
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--max-length", type=positive, default=256)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--warmup", type=positive, default=1, help="repeats that are not counted")
    parser.add_argument("--all", action="store_true", help="also the sketched and the exact method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="on a machine that is busy with other things: count the process's CPU seconds (with OMP_NUM_THREADS=1, "
        "since a thread that waits for another one counts as well)",
    )
    add_output_options(parser)
    arguments = parser.parse_args()
    plain, tuned = load_model(arguments.model), load_model(arguments.model)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tuned.model, lora)
    samples = choose(tuned.tokenizer, arguments)
    clock = Clock(cpu=arguments.cpu_time)
    runs = arms(model, plain.model, samples, arguments)
    interleave(clock, runs, repeats=arguments.repeats, warmup=arguments.warmup, seed=arguments.seed)
    settings = {
        **machine("transformers"),
        "base dtype": str(tuned.model.dtype).removeprefix("torch."),
        "samples": len(samples),
        "tokens": sum(len(sample.ids) for sample in samples),
        "response tokens": sum(sample.response_length for sample in samples),
        "batch size": arguments.batch_size,
        "rank of LoRA": RANK,
        "repeats": arguments.repeats,
        "unit": "CPU s" if arguments.cpu_time else "s",
    }
    show(arguments, table(clock.samples), dict(clock.samples), settings)


def choose(tokenizer: Any, arguments: argparse.Namespace) -> list[Completion]:
    """The first samples of either label, half of each."""
    everything = tokenise_completions(load_alignment_data("builtin"), tokenizer, arguments.max_length)
    share = {"unsafe": -(-arguments.samples // 2), "safe": arguments.samples // 2}
    return [one for label, count in share.items() for one in [s for s in everything if s.label == label][:count]]


def arms(
    model: Any, plain: Any, samples: list[Completion], arguments: argparse.Namespace
) -> dict[str, Callable[[int], None]]:
    """What is timed, by name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for one in (model, plain):
        one.to(device)
    pad_id = int(model.config.pad_token_id or 0)
    batches = [batch.to(device) for batch in completion_batches(samples, arguments.batch_size, pad_id)]

    def forward_and_backward(_: int) -> None:
        model.train()
        for batch in batches:
            response_losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    def estimation(of: Any, method: Any, _: int) -> None:
        estimate_fisher(
            of,
            samples,
            method=method,
            batch_size=arguments.batch_size,
            max_length=arguments.max_length,
            min_agreement=0.0,
            show_progress=False,
        )

    runs: dict[str, Callable[[int], None]] = {
        BASELINE: forward_and_backward,
        "auto": partial(estimation, model, "auto"),
        "auto, no adapter": partial(estimation, plain, "auto"),
    }
    if arguments.all:
        runs |= {method: partial(estimation, model, method) for method in ("sketched", "exact")}
    return runs


def table(samples: dict[str, list[float]]) -> list[Comparison]:
    """The ratio that has a target, and those that are there for information."""
    return [
        compare(f"Fisher estimation, {name} / {BASELINE}", values, samples[BASELINE], 1.5 if name == "auto" else None)
        for name, values in samples.items()
        if name != BASELINE
    ]


if __name__ == "__main__":
    main()
