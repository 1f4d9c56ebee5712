"""Peak memory of training with every step measured, as a ratio to TRL's own trainer.

Every sample is a child process that loads the model and trains for a few steps; the two arms take turns. On a CPU the
peak is the child's largest resident set, on a GPU the largest amount that torch had allocated::

    python benchmarks/align_memory.py --repeats 3

The second line sets the same peaks against each other after taking off what the process held before its first step, so
that Python, torch and the weights do not dilute the ratio.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from arms import add_model_options, describe, make_batches, make_trainer, train_step, without_ids
from children import in_child
from loralign.training import GeometryConfig
from ratios import add_output_options, compare, positive, show

ARMS = ("trl", "measured")


@dataclass(frozen=True)
class Peak:
    """Memory of one child, in MiB.

    Attributes:
        peak: largest over the child's life.
        before: held just before the first step.
        settings: of the child.
    """

    peak: float
    before: float
    settings: dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=3)
    add_model_options(parser)
    add_output_options(parser)
    arguments = parser.parse_args()
    found: dict[str, list[Peak]] = {arm: [] for arm in ARMS}
    with tqdm(total=arguments.repeats * len(ARMS), unit="process") as bar:
        for repeat in range(arguments.repeats):
            for arm in ARMS if repeat % 2 else reversed(ARMS):
                found[arm].append(in_child(child, arm, arguments))
                bar.update()
    peaks = {arm: [one.peak for one in children] for arm, children in found.items()}
    above = {arm: [one.peak - one.before for one in children] for arm, children in found.items()}
    rows = [
        compare("peak memory, every step measured / TRL", peaks["measured"], peaks["trl"], 1.05),
        compare("the same above what was held before the first step", above["measured"], above["trl"]),
    ]
    settings = {**found["trl"][0].settings, "steps": arguments.steps, "repeats": arguments.repeats, "unit": "MiB"}
    samples = {**peaks, **{f"{arm} above the start": values for arm, values in above.items()}}
    show(arguments, rows, samples, settings)


def child(arm: str, arguments: argparse.Namespace, sender: Connection) -> None:
    """Train one arm and send its :class:`Peak`."""
    with tempfile.TemporaryDirectory() as directory:
        geometry = GeometryConfig(measure_every=1, sketch_size=arguments.sketch_size)
        trainer = make_trainer(arguments, Path(directory), geometry if arm == "measured" else None)
        batches = make_batches(trainer, arguments)
        before = held()
        for step in range(arguments.steps):
            batch = batches[step % len(batches)]
            train_step(trainer, batch if arm == "measured" else without_ids(batch), step)
        sender.send(Peak(peak(), before, describe(arguments, trainer)))


def held() -> float:
    """MiB in use now."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    if platform.system() == "Linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20
    return peak()


def peak() -> float:
    """MiB at most in use since the process began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Kilobytes, but bytes on macOS.
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
