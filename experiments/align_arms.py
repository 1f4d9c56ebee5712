"""Arms of multi-objective DPO on real preference data: validation scores over training time, seeds and learning rates.

Equal steps at one learning rate prove nothing (docs/concepts.md), so every cell is scored at several times and the arms
are compared as frontiers of accuracy against drift. Finished cells are kept as JSON and reused; run several workers on
one output directory, and `table` and `plot` when they are done::

    python experiments/align_arms.py run --data DIR --out results --seeds 0 1
    python experiments/align_arms.py table --out results
    python experiments/align_arms.py frontier --out results
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cell_claims import claimed
from datasets import Dataset
from peft import LoraConfig
from peft.optimizers import create_riemannian_optimizer
from transformers import TrainerCallback
from trl import DPOConfig

from loralign.data import limit_length, load_preferences
from loralign.errors import LoralignError
from loralign.evaluation import preference_scores, score_pairs, tokenise_pairs
from loralign.files import write_json
from loralign.models import load_model
from loralign.runs.environment import onto_device
from loralign.training import GeometryConfig, MultiObjectiveDPOTrainer

SOURCES = {"helpful": "alpacafarm_helpful", "honest": "truthfulqa_honest", "harmless": "pku_harmless"}
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"weighting": "uniform"},
    "norm": {"weighting": "norm"},
    "geo": {"weighting": "geo"},
    "geo+accumulated": {"weighting": "geo", "refine_mode": "accumulated", "refine_every": 20},
    "geo+balanced": {"weighting": "geo", "refine_mode": "balanced", "refine_every": 20},
    "geo+start": {"weighting": "geo", "refine_mode": "balanced", "refine_at_start": True},
    "upgrad": {"weighting": "upgrad"},
    "mgda": {"weighting": "mgda"},
    "pcgrad": {"weighting": "pcgrad"},
    "cagrad": {"weighting": "cagrad"},
    "geo-layer": {"weighting": "geo-layer"},
    "riemannian": {"weighting": "uniform"},
    "geo+riemannian": {"weighting": "geo"},
}


def load(data: Path, split: str, per_objective: int, tokenizer: Any, max_length: int) -> Dataset:
    """The first pairs of each objective that fit ``max_length`` tokens."""
    sources = [f"{name}={data / f'{stem}_{split}.jsonl'}" for name, stem in SOURCES.items()]
    preferences, _ = limit_length(load_preferences(sources), tokenizer, max_length=max_length)
    labels = preferences.dataset["objective"]
    chosen = [
        index for name in SOURCES for index in [i for i, label in enumerate(labels) if label == name][:per_objective]
    ]
    return preferences.dataset.select(chosen)


class Scoring(TrainerCallback):
    """Scores the policy on the validation pairs after the given steps."""

    def __init__(self, validation: Dataset, at: list[int]) -> None:
        self.validation, self.at, self.points = validation, at, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score, outside of training mode and without disturbing the trainer's random state."""
        if state.global_step in self.at:
            model = kwargs["model"]
            model.eval()
            pairs = score_pairs(model, self.validation, progress=False, batch_tokens=1536)
            model.train()
            self.points.append({"step": state.global_step, "scores": preference_scores(pairs).to_json()})


def reference_log_probs(cache: Path, dataset: Dataset, loaded: Any, max_length: int) -> Dataset:
    """Add the reference's log-probabilities, computed once for all cells."""
    if not cache.exists():
        scored = score_pairs(
            loaded.model, tokenise_pairs(dataset, loaded.tokenizer, max_length), reference="none", batch_tokens=1536
        )
        write_json(cache, {"chosen": scored.log_prob[:, 0].tolist(), "rejected": scored.log_prob[:, 1].tolist()})
    values = json.loads(cache.read_text())
    dataset = dataset.add_column("ref_chosen_logps", values["chosen"])
    return dataset.add_column("ref_rejected_logps", values["rejected"])


def run_cell(arguments: argparse.Namespace, arm: str, seed: int, rate: float, target: Path) -> None:
    """Train one arm and write its scores and geometry."""
    started = time.time()
    loaded = onto_device(load_model(dtype=arguments.dtype))
    train = load(arguments.data, "train", arguments.pairs, loaded.tokenizer, arguments.max_length)
    train = reference_log_probs(arguments.out / "reference.json", train, loaded, arguments.max_length)
    validation = tokenise_pairs(
        load(arguments.data, "validation", arguments.validation, loaded.tokenizer, arguments.max_length),
        loaded.tokenizer,
        arguments.max_length,
    )
    scoring = Scoring(validation, arguments.at)
    work = target.with_suffix(".work")
    trainer = MultiObjectiveDPOTrainer(
        model=loaded.model,
        args=DPOConfig(
            output_dir=str(work),
            max_steps=arguments.steps,
            per_device_train_batch_size=6,
            learning_rate=rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            weight_decay=0.0,
            max_length=arguments.max_length,
            pad_to_multiple_of=32,
            gradient_checkpointing=False,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=train,
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[scoring],
        geometry=GeometryConfig(measure_every=5, **ARMS[arm]),
        objectives=tuple(SOURCES),
    )
    if arm.endswith("riemannian"):
        # Gradients of A and B, each times the inverse Gram matrix of the other (arXiv 2402.02347).
        trainer.optimizer = create_riemannian_optimizer(trainer.model, torch.optim.AdamW, lr=rate, weight_decay=0.0)
    trainer.train()
    records = [json.loads(line) for line in (work / "geometry.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("layer_attenuation", None)
        record.pop("layers", None)
    write_json(
        target,
        {
            "arm": arm,
            "seed": seed,
            "learning_rate": rate,
            "points": scoring.points,
            "geometry": [record for record in records if record["kind"] != "step"],
            "seconds": time.time() - started,
        },
    )


def run(arguments: argparse.Namespace) -> None:
    """Work through the grid; a cell that another worker has taken is left to it."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed, rate, arm in itertools.product(arguments.seeds, arguments.rates, arguments.arms):
        target = arguments.out / f"{arm}_{rate:g}_{seed}.json"
        with claimed(target) as mine:
            if mine:
                print(f"{arm} at {rate:g}, seed {seed}", flush=True)
                try:
                    run_cell(arguments, arm, seed, rate, target)
                except LoralignError as error:
                    # Such as a peer whose solver is not installed; the other arms do not depend on it.
                    print(f"{arm} failed: {error}", flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Print a Markdown table: one line per arm, learning rate and time, means over seeds."""
    print("| arm | learning rate | step | seeds | helpful | honest | harmless | worst | DPO loss | KL(π‖ref) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (arm, rate, step), cells in sorted(_by_point(arguments).items(), key=_order):
        objectives = {name: [cell["objectives"][name]["measures"] for cell in cells] for name in SOURCES}
        means = {name: _mean(rows, "accuracy_reward") for name, rows in objectives.items()}
        columns = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in means.values()]
        overall = [cell["overall"]["measures"] for cell in cells]
        loss, drift = _mean(overall, "loss"), _mean(overall, "kl_policy_reference")
        worst = min(value for value, _, _ in means.values())
        line = [arm, f"{rate:g}", str(step), str(len(cells)), *columns, f"{worst:.2f}", f"{loss[0]:.3f}"]
        print("| " + " | ".join([*line, f"{drift[0]:.3f} [{drift[1]:.3f}, {drift[2]:.3f}]"]) + " |")


def frontier(arguments: argparse.Namespace) -> None:
    """Print how far each arm lies from uniform weighting at the same drift, mean over its times, rates and seeds.

    Uniform's own points of the same seed, through all times and rates, are joined by straight lines over the logarithm
    of the drift. Points of an arm with more drift than any of them are left out and counted, those with less than
    ``--least`` nats left out. Uniform's own need not lie on a curve: its row says how far each is from the line of its
    neighbours.
    """
    own = {seed: _ordered(points) for (arm, seed), points in _by_seed(arguments).items() if arm == "uniform"}
    head = ("arm", "seeds", "points (beyond)", "DPO loss (range)", *SOURCES, "mean accuracy")
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for arm in ARMS:
        found, beyond = [], 0
        for (name, seed), points in _by_seed(arguments).items():
            if name != arm or seed not in own:
                continue
            curve = own[seed]
            for number, point in enumerate(_ordered(points)):
                others = np.delete(curve, number, axis=0) if arm == "uniform" else curve
                if math.exp(point[0]) < arguments.least:
                    continue
                if not others[0, 0] <= point[0] <= others[-1, 0]:
                    beyond += 1
                    continue
                line = [np.interp(point[0], others[:, 0], column) for column in others[:, 1:].T]
                found.append((seed, point[1:] - line))
        if found:
            rows = np.array([difference for _, difference in found])
            mean = rows.mean(axis=0)
            spread = f"{mean[0]:+.4f} ({rows[:, 0].min():+.3f} to {rows[:, 0].max():+.3f})"
            values = [spread, *(f"{value:+.3f}" for value in (*mean[1:], mean[1:].mean()))]
            seeds = len({seed for seed, _ in found})
            print("| " + " | ".join([arm, str(seeds), f"{len(rows)} ({beyond})", *values]) + " |")


def _cells(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(arguments.out.glob("*_*_*.json"))]
    return [cell for cell in cells if arguments.seeds is None or cell["seed"] in arguments.seeds]


def _by_seed(arguments: argparse.Namespace) -> dict[tuple[str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in _cells(arguments):
        found.setdefault((cell["arm"], cell["seed"]), []).extend(point["scores"] for point in cell["points"])
    return found


def _ordered(points: list[dict[str, Any]]) -> np.ndarray:
    """A row for every point by rising drift: its logarithm, the loss, the accuracy of each objective."""
    rows = [
        [
            math.log(one["overall"]["measures"]["kl_policy_reference"]["value"]),
            one["overall"]["measures"]["loss"]["value"],
            *(one["objectives"][name]["measures"]["accuracy_reward"]["value"] for name in SOURCES),
        ]
        for one in points
    ]
    return np.array(sorted(rows))


def plot(arguments: argparse.Namespace) -> None:
    """Draw validation loss and mean accuracy against drift, one curve per arm through all times and learning rates."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    titles = ("Validation DPO loss (lower is better)", "Preference accuracy, mean of objectives (higher is better)")
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles)
    colours = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#BCBD22")
    colours += ("#7F7F7F", "#17BECF", "#A55194", "#637939")
    points = _by_point(arguments)
    for arm, colour in zip(ARMS, colours, strict=True):
        curve = []
        for (name, rate, step), cells in points.items():
            if name == arm:
                overall = [cell["overall"]["measures"] for cell in cells]
                accuracy = [
                    _mean([cell["objectives"][o]["measures"] for cell in cells], "accuracy_reward")[0] for o in SOURCES
                ]
                values = (
                    _mean(overall, "kl_policy_reference")[0],
                    _mean(overall, "loss")[0],
                    sum(accuracy) / len(accuracy),
                )
                curve.append((*values, f"{arm}, {rate:g}, step {step}"))
        curve.sort()
        for column, index in ((1, 1), (2, 2)):
            trace = graph_objects.Scatter(
                x=[point[0] for point in curve],
                y=[point[index] for point in curve],
                text=[point[3] for point in curve],
                name=arm,
                legendgroup=arm,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour},
            )
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(type="log", title="KL(policy || reference), nats per response token")
    figure.update_layout(template="plotly_white", width=1300, height=520, legend={"orientation": "h", "y": -0.2})
    figure.write_html(arguments.picture, include_plotlyjs=True, config={"displayModeBar": False})


def _by_point(arguments: argparse.Namespace) -> dict[tuple[str, float, int], list[dict[str, Any]]]:
    points: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for cell in _cells(arguments):
        for point in cell["points"]:
            points.setdefault((cell["arm"], cell["learning_rate"], point["step"]), []).append(point["scores"])
    return points


def _order(item: Any) -> tuple[float, int, int]:
    (arm, rate, step), _ = item
    return rate, step, list(ARMS).index(arm)


def _mean(rows: list[dict[str, Any]], measure: str) -> tuple[float, float, float]:
    """Mean over seeds of an estimate and of the two ends of its bootstrap interval over pairs."""
    found = [row[measure] for row in rows]
    value, low, high = (sum(one[key] for one in found) / len(found) for key in ("value", "low", "high"))
    return value, low, high


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.add_argument("--data", type=Path, required=True, help="directory with the preference files")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--rates", nargs="+", type=float, default=[1e-4])
    command.add_argument("--steps", type=int, default=60)
    command.add_argument("--at", nargs="+", type=int, default=[30, 60])
    command.add_argument("--pairs", type=int, default=120, help="pairs per objective to train on")
    command.add_argument("--validation", type=int, default=48, help="pairs per objective")
    command.add_argument("--max-length", type=int, default=96)
    command.add_argument("--dtype", default="auto")
    command.set_defaults(function=run)
    for name, function in (("table", table), ("frontier", frontier), ("plot", plot)):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True, help="where the cells are")
        command.add_argument("--seeds", nargs="+", type=int, help="these alone; all by default")
        if name == "frontier":
            command.add_argument("--least", type=float, default=0.004, help="drift from which arms are compared")
        if name == "plot":
            command.add_argument("picture", type=Path, help="HTML file to write")
        command.set_defaults(function=function)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
