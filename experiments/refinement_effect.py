"""What refinement does to SmolLM2-135M-Instruct: attenuation and loss just before and after, on fresh batches.

At the start (B = 0) and after some steps of training, every mode is applied to a copy of the same adapter. Attenuation
is measured on the batches whose gradients chose the directions and on batches that were not seen; the loss on the
latter. Then training goes on for some steps from each copy, to show whether anything spikes::

    python experiments/refinement_effect.py --json effect.json
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from loralign.capture import GradientCapture, GradientStatistics
from loralign.data import load_preferences
from loralign.data.sampler import ObjectiveSampler
from loralign.evaluation import tokenise_pairs
from loralign.files import write_json
from loralign.geometry import UpdateWindow, refine
from loralign.lora import lora_layers
from loralign.models import load_model

OBJECTIVES = ("helpful", "honest", "harmless")


class Task:
    """A plain DPO step on bundled pairs, written out so that nothing hides the geometry."""

    def __init__(self, rank: int, length: int) -> None:
        loaded = load_model()
        torch.manual_seed(0)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: Any = get_peft_model(loaded.model, lora)
        self.length, self.pad = length, loaded.tokenizer.pad_token_id
        dataset = load_preferences(["builtin"]).dataset
        self.pairs = tokenise_pairs(dataset, loaded.tokenizer, length)
        self.labels = [OBJECTIVES.index(label) for label in self.pairs["objective"]]
        self.order = list(ObjectiveSampler(self.labels, 3, step_size=6, micro_batch=6))
        self.reference: dict[int, Tensor] = {}

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Six pairs as ``[chosen; rejected]`` rows, completion masks, objective ids."""
        first = 6 * (number % (len(self.order) // 6))
        rows = self.order[first : first + 6]
        ids = torch.full((12, self.length), self.pad)
        completion = torch.zeros(12, self.length, dtype=torch.bool)
        for half, side in enumerate(("chosen_ids", "rejected_ids")):
            for position, row in enumerate(rows):
                prompt = self.pairs[row]["prompt_ids"]
                text = prompt + self.pairs[row][side]
                ids[6 * half + position, : len(text)] = torch.tensor(text)
                completion[6 * half + position, len(prompt) : len(text)] = True
        return ids, completion, torch.tensor([self.labels[row] for row in rows])

    def log_probs(self, ids: Tensor, completion: Tensor) -> Tensor:
        """Summed response log-probabilities, ``(12,)``."""
        logits = self.model(ids[:, :-1]).logits.float()
        tokens = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None]).squeeze(-1)
        return (tokens * completion[:, 1:]).sum(dim=1)

    def loss(self, number: int) -> Tensor:
        """DPO's sigmoid loss with beta 0.1 on one batch."""
        ids, completion, _ = self.batch(number)
        if number not in self.reference:
            with torch.no_grad(), self.model.disable_adapter():
                self.reference[number] = self.log_probs(ids, completion)
        chosen, rejected = (self.log_probs(ids, completion) - self.reference[number]).chunk(2)
        return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()

    def train(self, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
        """Train on the batches, return their losses."""
        losses = []
        for number in numbers:
            optimizer.zero_grad()
            loss = self.loss(number)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        optimizer.zero_grad()
        return losses

    def captured(self, numbers: range) -> GradientCapture:
        """Capture the gradients of some batches."""
        capture = GradientCapture(self.model, OBJECTIVES)
        for number in numbers:
            loss = self.loss(number)
            with capture(self.batch(number)[2], loss_scale=1 / len(numbers)):
                (loss / len(numbers)).backward()
        self.model.zero_grad()
        return capture

    def measure(self, numbers: range) -> GradientStatistics:
        """Statistics of some batches."""
        capture = self.captured(numbers)
        statistics = capture.statistics("mean")
        capture.close()
        return statistics


def optimizer_for(task: Task, rate: float) -> torch.optim.AdamW:
    """AdamW over the factors."""
    return torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)


def effect(
    task: Task, mode: dict[str, Any], optimizer: Any, window: UpdateWindow | None, seen: range, held: range
) -> dict[str, Any]:
    """Apply one mode and measure around it."""
    with torch.no_grad():
        before = sum(float(task.loss(number)) for number in held) / len(held)
    capture = task.captured(seen)
    on_seen, on_held = capture.statistics("mean").attenuation(), task.measure(held).attenuation()
    report = refine(task.model, optimizer, capture=capture, window=window, **mode)
    capture.close()
    after_seen, after_held = task.measure(seen).attenuation(), task.measure(held).attenuation()
    with torch.no_grad():
        after = sum(float(task.loss(number)) for number in held) / len(held)
    return {
        **mode,
        "replaced": report.replaced,
        "rows": sum(len(layer.spectrum) for layer in report.layers),
        "function_change": report.function_change,
        "attenuation_seen": [on_seen.tolist(), after_seen.tolist()],
        "attenuation_held": [on_held.tolist(), after_held.tolist()],
        "loss_held": [before, after],
    }


def main() -> None:
    """Run both stages and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12, help="training steps before the second stage")
    parser.add_argument("--more", type=int, default=3, help="training steps after each refinement")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    task = Task(arguments.rank, arguments.length)
    rows = []
    fresh = {name: value.detach().clone() for name, value in task.model.named_parameters() if value.requires_grad}
    for mode in ("gradient", "balanced"):
        _restore(task, fresh)
        rows.append({"stage": "start", **effect(task, {"mode": mode}, None, None, range(40, 42), range(42, 44))})
    _restore(task, fresh)
    optimizer = optimizer_for(task, arguments.rate)
    window = UpdateWindow(lora_layers(task.model))
    task.train(optimizer, range(arguments.steps))
    trained = {name: value.detach().clone() for name, value in task.model.named_parameters() if value.requires_grad}
    state, marks = copy.deepcopy(optimizer.state_dict()), window.state_dict()
    following = range(arguments.steps, arguments.steps + arguments.more)
    losses = task.train(optimizer, following)
    rows.append({"stage": "trained", "mode": "none", "next_losses": losses})
    for mode in (
        {"mode": "condition"},
        {"mode": "condition", "scale": "rows"},
        {"mode": "accumulated"},
        {"mode": "balanced"},
        {"mode": "balanced", "tolerance": 0.05, "scale": "rows"},
    ):
        _restore(task, trained)
        optimizer = optimizer_for(task, arguments.rate)
        optimizer.load_state_dict(copy.deepcopy(state))
        window.load_state_dict({name: value.clone() for name, value in marks.items()})
        row = effect(task, mode, optimizer, window, range(40, 42), range(42, 44))
        rows.append({"stage": "trained", **row, "next_losses": task.train(optimizer, following)})
    print_table(rows)
    if arguments.json is not None:
        write_json(arguments.json, rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown."""
    print("| stage | mode | rows replaced | ‖ΔW‖ change | γ, same batches | γ, fresh ones | loss | next losses |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        mode = " ".join(str(row[key]) for key in ("mode", "scale", "tolerance") if key in row)
        following = ", ".join(f"{loss:.3f}" for loss in row.get("next_losses", []))
        if "rows" not in row:
            print(f"| {row['stage']} | {mode} | | | | | | {following} |")
            continue
        pairs = [
            "; ".join(f"{b:.2f} → {a:.2f}" for b, a in zip(*row[key], strict=True))
            for key in ("attenuation_seen", "attenuation_held")
        ]
        loss = " → ".join(f"{value:.4f}" for value in row["loss_held"])
        print(
            f"| {row['stage']} | {mode} | {row['replaced']} of {row['rows']} | {row['function_change']:.2%} "
            f"| {pairs[0]} | {pairs[1]} | {loss} | {following} |"
        )


@torch.no_grad()
def _restore(task: Task, values: dict[str, Tensor]) -> None:
    for name, parameter in task.model.named_parameters():
        if name in values:
            parameter.copy_(values[name])


if __name__ == "__main__":
    main()
