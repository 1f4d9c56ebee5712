"""Time of a training step that measures LoRA's geometry, and of a refinement, as ratios to TRL's own step.

SmolLM2-135M, 3 objectives, 6 pairs × 128 tokens, LoRA of rank 16 on all linear layers. In every repeat each arm runs
once, on the same batch and in a new random order; a ratio is the median over repeats of the quotients within a repeat::

    python benchmarks/align_step.py --repeats 15

The arms:

- ``trl``: one step of TRL's ``DPOTrainer`` with plain LoRA.
- ``measured``: one step of ``MultiObjectiveDPOTrainer`` that measures, with weights that are not uniform.
- ``weighted``: one that does not measure, with such weights.
- ``separate backwards``: one forward pass of the plain model, then one backward pass per objective over the whole batch
  through the kept graph.
- ``separate passes``: one forward and backward pass per objective, over that objective's own pairs.
- ``refine``: one refinement of all layers in each mode, undone afterwards (a measuring step first, outside the time,
  where nothing stands captured).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import DPOTrainer

from arms import Batch, add_model_options, describe, make_batches, make_trainer, train_step, without_ids
from loralign.training import GeometryConfig, MultiObjectiveDPOTrainer
from ratios import Comparison, add_output_options, compare, positive, show
from separate import separate_backwards, separate_passes
from timing import Clock, interleave

MEASURE_EVERY = 10
REFINE_MODES = ("balanced", "accumulated")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive, default=15)
    parser.add_argument("--warmup", type=positive, default=2, help="repeats that are not counted")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="on a machine that is busy with other things: count the process's CPU seconds (with OMP_NUM_THREADS=1, "
        "since a thread that waits for another one counts as well)",
    )
    add_model_options(parser)
    add_output_options(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        # The window of updates is kept for the sake of one kind of refinement; no step refines by itself.
        geometry = GeometryConfig(
            measure_every=MEASURE_EVERY, sketch_size=arguments.sketch_size, refine_mode="accumulated"
        )
        ours: MultiObjectiveDPOTrainer = make_trainer(arguments, Path(directory) / "ours", geometry)
        plain = make_trainer(arguments, Path(directory) / "trl")
        clock, replaced = Clock(cpu=arguments.cpu_time), dict[str, int]()
        runs = arms(ours, plain, make_batches(ours, arguments), clock, replaced)
        # The first measurement puts the weights in force that all later steps of ours have.
        runs["measured"](0)
        if bool((ours.geometry_callback.running.reweighting.weights == 1).all()):
            raise RuntimeError("the weights are uniform, so the steps of ours would do less than they should")
        settings = describe(arguments, plain)
        interleave(clock, runs, repeats=arguments.repeats, warmup=arguments.warmup, seed=arguments.seed)
        ours.geometry_callback.close()
    rows_replaced = {f"rows replaced by {mode}": count for mode, count in replaced.items()}
    settings |= {"repeats": arguments.repeats, "unit": "CPU s" if arguments.cpu_time else "s", **rows_replaced}
    show(arguments, table(clock.samples), dict(clock.samples), settings)


def arms(
    ours: MultiObjectiveDPOTrainer,
    plain: DPOTrainer,
    batches: Sequence[Batch],
    clock: Clock,
    replaced: dict[str, int],
) -> dict[str, Callable[[int], None]]:
    """What is timed, by name; ``replaced`` is told how many rows of ``A`` the last refinement of each mode renewed."""
    backward = plain.accelerator.backward

    def timed_backward(*args: Any, **kwargs: Any) -> None:
        with clock.part("backward"):
            backward(*args, **kwargs)

    plain.accelerator.backward = timed_backward

    def batch(repeat: int) -> Batch:
        return batches[repeat % len(batches)]

    count = len(ours.objectives)
    return {
        "trl": lambda repeat: train_step(plain, without_ids(batch(repeat)), repeat),
        "measured": lambda repeat: train_step(ours, batch(repeat), MEASURE_EVERY * repeat),
        "weighted": lambda repeat: train_step(ours, batch(repeat), MEASURE_EVERY * repeat + 1),
        "separate backwards": lambda repeat: separate_backwards(plain, batch(repeat), count, clock),
        "separate passes": lambda repeat: separate_passes(plain, batch(repeat), count, clock),
        "refine": lambda repeat: refinements(ours, batch(repeat), repeat, clock, replaced),
    }


def refinements(
    trainer: MultiObjectiveDPOTrainer, batch: Batch, repeat: int, clock: Clock, replaced: dict[str, int]
) -> None:
    """Refine all layers in every mode; the parts named after the modes hold the refinement alone.

    A step that measures comes first where the arm before this one has left nothing captured.
    """
    if not trainer.geometry_callback.running.capture.pending:
        train_step(trainer, batch, MEASURE_EVERY * repeat)
    for mode in REFINE_MODES:
        refinement(trainer, mode, clock, replaced)


def refinement(trainer: MultiObjectiveDPOTrainer, mode: str, clock: Clock, replaced: dict[str, int]) -> None:
    """Refine all layers from what was last captured, then undo it; the refinement alone is the part."""
    engine = trainer.geometry_callback.running
    factors = [factor for layer in engine.capture.layers for factor in (layer.A, layer.B)]
    before = [factor.detach().clone() for factor in factors]
    moments = copy.deepcopy(trainer.optimizer.state_dict())
    window = {} if engine.window is None else {k: tensor.clone() for k, tensor in engine.window.state_dict().items()}
    with clock.part(mode):
        report = engine.refine(trainer.optimizer, mode=mode)
    replaced[mode] = report.replaced
    with torch.no_grad():
        for factor, value in zip(factors, before, strict=True):
            factor.copy_(value)
    trainer.optimizer.load_state_dict(moments)
    if engine.window is not None:
        engine.window.load_state_dict(window)


def table(samples: dict[str, list[float]]) -> list[Comparison]:
    """The ratios that have a target."""
    trl, measured, weighted = samples["trl"], samples["measured"], samples["weighted"]
    amortised = [
        ((MEASURE_EVERY - 1) * rest + first) / MEASURE_EVERY for first, rest in zip(measured, weighted, strict=True)
    ]
    # All that a measured step costs beyond TRL's is charged to its one backward pass.
    one_backward = [
        plain_backward + ours - plain
        for plain_backward, ours, plain in zip(samples["trl/backward"], measured, trl, strict=True)
    ]
    separate = samples["separate backwards"]
    return [
        compare("step that measures / TRL step", measured, trl, 1.15),
        compare("step that does not measure, weights not uniform / TRL step", weighted, trl),
        compare(f"step with measure_every={MEASURE_EVERY}, amortised / TRL step", amortised, trl, 1.03),
        compare("step that measures / step with K separate backward passes", measured, separate, 0.5),
        compare(
            "one backward pass with all cost of measuring / K separate backward passes",
            one_backward,
            samples["separate backwards/backward"],
            0.5,
        ),
        compare("step that measures / step with K passes over own pairs", measured, samples["separate passes"]),
        compare("refinement of all layers, balanced / TRL step", samples["refine/balanced"], trl, 1.0),
        compare("refinement of all layers, accumulated / TRL step", samples["refine/accumulated"], trl, 1.0),
    ]


if __name__ == "__main__":
    main()
