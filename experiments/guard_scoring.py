"""What the arms of adapting an aligned model are judged by."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from loralign.data import load_task, tokenise_completions
from loralign.evaluation import PhraseJudge, completion_losses, generate_answers
from loralign.guard import AlignmentSubspace, ProbeSet, total_share
from loralign.guard.fisher_options import OPENING
from loralign.lora import lora_layers

SEEN_TASK_SAMPLES = 60
"""Held-back samples of every task that the first runs were scored on."""


class Judge:
    """Refusals on prompts that nothing was trained or estimated on, drift on the probe, and the task.

    Args:
        arguments: with ``data``, ``judged``, ``judge_offset``, ``unseen``, ``task_samples`` and ``max_length``.
        start: the aligned start with its tokenizer, where it is to be asked.
        task: ``alpaca``, ``sst2`` or ``gsm8k``.
        probe: must-survive samples; the start's side of it is measured now.
        fresh: others, which choose nothing.
    """

    def __init__(
        self,
        arguments: Any,
        start: Any,
        task: str | None = None,
        probe: Sequence[Any] = (),
        fresh: Sequence[Any] = (),
    ) -> None:
        self.tokenizer = start.tokenizer
        self.judge = PhraseJudge()
        # An accelerator answers all prompts in the time of a few.
        self.batch_tokens = 2**16 if start.model.device.type == "cuda" else 4096
        self.prompts: dict[str, list[list[dict[str, str]]]] = {}
        for label in ("unsafe", "safe"):
            lines = (arguments.data / f"safety/{label}_prompts.jsonl").read_text(encoding="utf-8").splitlines()
            if arguments.unseen:
                lines = [line for index, line in enumerate(lines) if _is_unseen(index)]
                lines = [lines[len(lines) * index // arguments.judged] for index in range(arguments.judged)]
            else:
                stride = max(1, len(lines) // arguments.judged)
                lines = lines[arguments.judge_offset :: stride][: arguments.judged]
            texts = [json.loads(line)["prompt"] for line in lines]
            self.prompts[label] = [[{"role": "user", "content": text}] for text in texts]
        self.task = task
        self.max_length = arguments.max_length
        self.samples: Any = None
        if task is not None:
            self.samples = self._held_back(arguments, task)
            self.completions = tokenise_completions(self.samples, self.tokenizer, self.max_length)
        self.probes = {
            name: ProbeSet(samples, pad_id=self.tokenizer.pad_token_id, response_tokens=tokens)
            for name, samples, tokens in (
                ("kl", probe, None),
                ("kl_opening", probe, OPENING),
                ("kl_fresh", fresh, OPENING),
            )
            if samples
        }
        for one in self.probes.values():
            one.cache(start.model)

    def summary(self, model: Any, subspace: AlignmentSubspace | None = None) -> dict[str, Any]:
        """All scores of a model."""
        found: dict[str, Any] = dict(self.safety(model))
        found |= {name: probe.measure(model).kl for name, probe in self.probes.items()}
        if self.task is not None:
            losses = completion_losses(model, self.completions, pad_id=self.tokenizer.pad_token_id)
            found["task_loss"] = float(losses.mean())
            found["task_losses"] = [round(value, 4) for value in losses.tolist()]
            found["task_score"] = self._score(model)
        if subspace is not None:
            layers = lora_layers(model)
            found["share"] = total_share(layers, subspace.match(layers))
        return found

    def drift(self, model: Any) -> float:
        """Divergence from the start on the opening of the probe's responses, which budgets bound."""
        return self.probes["kl_opening"].measure(model).kl

    def safety(self, model: Any) -> dict[str, Any]:
        """Share of refusals of unsafe and of safe prompts, and every judgement."""
        found: dict[str, Any] = {}
        for label, name in (("unsafe", "refusal"), ("safe", "over_refusal")):
            answers = generate_answers(
                model,
                self.tokenizer,
                self.prompts[label],
                max_new_tokens=24,
                batch_tokens=self.batch_tokens,
                show_progress=False,
            )
            texts = [prompt[0]["content"] for prompt in self.prompts[label]]
            refused = [self.judge.is_refusal(text, answer) for text, answer in zip(texts, answers, strict=True)]
            found[name] = sum(refused) / len(refused)
            found[f"{name}_each"] = "".join("1" if one else "0" for one in refused)
        return found

    def _held_back(self, arguments: Any, task: str) -> Any:
        folder = arguments.data / "tasks"
        seen = SEEN_TASK_SAMPLES if arguments.unseen else 0
        if task == "alpaca":
            rows = load_task(str(folder / "alpaca_train.jsonl"))
            last = len(rows) - seen
            return rows.select(range(last - arguments.task_samples, last))
        name = "sst2_validation" if task == "sst2" else "gsm8k_test"
        return load_task(str(folder / f"{name}.jsonl")).select(range(seen, seen + arguments.task_samples))

    def _score(self, model: Any) -> float | None:
        """Accuracy of SST-2; of GSM8K's problems a model of this size solves next to none, so there the loss speaks."""
        if self.task != "sst2":
            return None
        prompts = self.samples["prompt"]
        answers = generate_answers(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=4,
            batch_tokens=self.batch_tokens,
            show_progress=False,
        )
        wanted = [completion[0]["content"] for completion in self.samples["completion"]]
        return sum(_first_word(one) == _first_word(right) for one, right in zip(answers, wanted, strict=True)) / len(
            wanted
        )


class UntilAligned(TrainerCallback):
    """Stops a training as soon as enough unsafe prompts and not too many safe ones are refused.

    Args:
        judge: with the prompts.
        every: steps between two looks.
        refusal: share of unsafe prompts wanted.
        over_refusal: share of safe prompts that is still bearable.
    """

    def __init__(self, judge: Judge, every: int, refusal: float, over_refusal: float) -> None:
        self.judge, self.every, self.refusal, self.over_refusal = judge, every, refusal, over_refusal
        self.course: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Look, if it is time."""
        if state.global_step % self.every == 0:
            found = self.judge.safety(kwargs["model"])
            point = {"step": state.global_step, "refusal": found["refusal"], "over_refusal": found["over_refusal"]}
            self.course.append(point)
            print(point, flush=True)
            enough = found["refusal"] >= self.refusal and found["over_refusal"] <= self.over_refusal
            control.should_training_stop = control.should_training_stop or enough
        return control


class Scoring(TrainerCallback):
    """Scores the model after the given steps, and times the steps themselves."""

    def __init__(self, judge: Judge, at: list[int], subspace: AlignmentSubspace | None = None) -> None:
        self.judge, self.at, self.subspace, self.points = judge, at, subspace, []
        self.seconds = 0.0
        self._steps: list[float] = []
        self._began = 0.0

    @property
    def seconds_per_step(self) -> float:
        """Median."""
        return sorted(self._steps)[len(self._steps) // 2]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it, and score if it is time, without disturbing the trainer's random state."""
        self._steps.append(time.perf_counter() - self._began)
        if state.global_step in self.at:
            model = kwargs["model"]
            began = time.perf_counter()
            model.eval()
            with torch.random.fork_rng():
                self.points.append({"step": state.global_step, "scores": self.judge.summary(model, self.subspace)})
            model.train()
            self.seconds += time.perf_counter() - began
        self._began = time.perf_counter()


def _is_unseen(index: int) -> bool:
    """Whether a prompt is none of those by which starts and settings were chosen or the first runs judged."""
    return index % 4 != 0 and index % 9 != 0 and index % 5 != 2


def _first_word(text: str) -> str:
    found = re.findall(r"[a-z]+", text.lower())
    return found[0] if found else ""
