"""Arms of adapting an aligned model to a task: what each keeps of the refusals and gains on the task.

First an aligned start is made (supervised fine-tuning on the bundled must-survive set and on Alpaca answers) and its
subspace is estimated; then every arm adapts the same start to the same task, and the adapter of plain LoRA is repaired
in every way. All prompts that arms are judged by are unknown to the start, the subspace and the controller, and are
others than those by which the settings were chosen (``--judge-offset 0``). Finished cells are kept as JSON and reused;
several workers share them::

    python experiments/guard_arms.py start --data DIR --out results
    python experiments/guard_arms.py run --data DIR --out results --tasks alpaca --seeds 0 1
    python experiments/guard_arms.py table --out results
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from cell_claims import claimed
from datasets import Dataset
from guard_peers import KlToStartTrainer, L2ToStart
from guard_scoring import SEEN_TASK_SAMPLES, Judge, Scoring, UntilAligned
from guard_table import print_tables
from peft import LoraConfig, PeftModel
from trl import SFTConfig

from loralign.data import load_alignment_data, load_task, tokenise_completions
from loralign.files import write_json
from loralign.guard import AlignmentSubspace, PeerOptions, estimate_fisher, repair
from loralign.guard.fisher_options import OPENING
from loralign.lora import lora_layers
from loralign.models import load_model, merge_adapter, portable_base_name
from loralign.runs.align import save_adapter
from loralign.runs.environment import onto_device
from loralign.runs.guarding import balanced
from loralign.training import GuardConfig, GuardData, GuardedSFTTrainer

TASKS = {"alpaca": "alpaca_train", "sst2": "sst2_train_5pct_unsafe", "gsm8k": "gsm8k_train"}
ALIGNMENT: dict[str, Any] = {"lambda_alignment": 10.0, "lambda_stability": 0.0, "lambda_collision": 0.0}
STABILITY: dict[str, Any] = {**ALIGNMENT, "lambda_stability": 0.02}
FULL: dict[str, Any] = {**STABILITY, "lambda_collision": 0.1}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"guard_mode": "measure"},
    "project": {"guard_mode": "project"},
    "project, first subspace": {"guard_mode": "project", "reestimate_every": 0},
    "+alignment": ALIGNMENT,
    "+stability": STABILITY,
    "+overlap": {**STABILITY, "lambda_collision": 0.05, "collision_alpha": 1.0},
    "full": FULL,
    "full, soft": {**FULL, "guard_projection": "soft"},
    "full, decoupled": {**FULL, "guard_placement": "decoupled"},
    "full, budget": {**FULL, "drift_budget": 0.1, "probe_every": 5},
    "paper's weights": {"lambda_alignment": 0.25, "lambda_stability": 0.5, "lambda_collision": 0.1},
    "l2": {"guard_mode": "measure"},
    "kl": {"guard_mode": "measure"},
}
REPAIRS: dict[str, dict[str, Any]] = {
    "repair": {"strength": 1.0},
    "repair, rank 16": {"strength": 1.0, "rank": 16},
    "repair, whole responses": {"strength": 1.0, "subspace": "subspace_whole"},
    "repair, budget": {"drift_budget": 0.1},
    "repair, random subspace": {"method": "random", "strength": 1.0},
    "scaled by 0.75": {"method": "scale", "strength": 0.25},
    "scaled by 0.5": {"method": "scale", "strength": 0.5},
    "scaled, budget": {"method": "scale", "drift_budget": 0.1},
    "safe lora": {"method": "safe_lora"},
    "intruder": {"method": "intruder"},
}
# With all samples, and of the directions the fewest that leave a tenth of plain LoRA's drift.
FINE_REPAIRS: dict[str, dict[str, Any]] = {
    "repair, fewest directions": {"by_rank": True, "subspace": "subspace_all", "rank": 64, "left": 0.1},
    "repair, fewest directions, 30 %": {"by_rank": True, "subspace": "subspace_all", "rank": 64, "left": 0.3},
    "scaled to the same drift": {"method": "scale", "left": 0.1},
}
# Of the adapter of ``project``: guarding and repair together.
GUARDED_REPAIRS: dict[str, dict[str, Any]] = {
    "project, then repair with 16 directions": {"strength": 1.0, "subspace": "subspace_all", "rank": 16},
    "project, then repair with 32 directions": {"strength": 1.0, "subspace": "subspace_all", "rank": 32},
}
REPAIRED = {"repairs": ("plain", REPAIRS), "fine repairs": ("plain", FINE_REPAIRS)} | {
    "guarded repairs": ("project", GUARDED_REPAIRS)
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def training_config(output: Path, arguments: argparse.Namespace, seed: int, **options: Any) -> SFTConfig:
    """What all trainings have in common."""
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": arguments.steps,
        "per_device_train_batch_size": 8,
        "learning_rate": arguments.rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "weight_decay": 0.0,
        "max_length": arguments.max_length,
        "pad_to_multiple_of": 32,
        "gradient_checkpointing": False,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
    }
    return SFTConfig(**{**settings, **options})


def lora(rank: int = 16) -> LoraConfig:
    """Of every training."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def device_name() -> str:
    """What a cell was run on."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


def make_start(arguments: argparse.Namespace) -> None:
    """Align the model until it refuses, merge, estimate the subspace, and say how aligned it is."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    loaded = onto_device(load_model())
    kept = load_alignment_data("builtin", split="train")
    unsafe = kept.filter(lambda row: row["label"] == "unsafe")
    alpaca = load_task(str(arguments.data / "tasks/alpaca_train.jsonl")).select(range(arguments.answers))
    columns = ["prompt", "completion"]
    # Refusals three times over, so that they are as many as the answers.
    parts = [unsafe, unsafe, kept, alpaca]
    rows = Dataset.from_list([row for part in parts for row in part.select_columns(columns)])
    judge = Judge(arguments, loaded)
    enough = UntilAligned(judge, arguments.start_every, refusal=0.9, over_refusal=0.2)
    trainer = GuardedSFTTrainer(
        model=loaded.model,
        args=training_config(
            out / "start.work",
            arguments,
            0,
            max_steps=arguments.start_steps,
            per_device_train_batch_size=16,
            learning_rate=arguments.start_rate,
        ),
        train_dataset=rows.shuffle(seed=0),
        processing_class=loaded.tokenizer,
        peft_config=lora(),
        callbacks=[enough],
    )
    trainer.train()
    save_adapter(trainer.model, loaded.tokenizer, portable_base_name(loaded.source.name), out / "start.adapter")
    merge_adapter(out / "start.adapter", out / "start")
    start = onto_device(load_model(str(out / "start")))
    scores = judge.safety(start.model)
    write_json(out / "start.json", {"scores": scores, "steps": trainer.state.global_step, "course": enough.course})
    print(scores["refusal"], scores["over_refusal"])
    make_subspaces(arguments)


def make_subspaces(arguments: argparse.Namespace) -> None:
    """Estimate the start's subspace on the opening of the responses, and for comparison on whole ones."""
    start = onto_device(load_model(str(arguments.out / "start")))
    rows = balanced(load_alignment_data("builtin", split="train"), arguments.fisher_samples)
    samples = tokenise_completions(rows, start.tokenizer, arguments.max_length)
    for name, tokens in (("subspace", arguments.fisher_tokens), ("subspace_whole", None)):
        if not (arguments.out / name).is_dir():
            estimate_fisher(
                start.model,
                samples,
                method="sketched",
                rank=arguments.subspace_rank,
                response_tokens=tokens,
                max_length=arguments.max_length,
            ).save(arguments.out / name)
    if not (arguments.out / "subspace_all").is_dir():
        everything = tokenise_completions(
            load_alignment_data("builtin", split="train"), start.tokenizer, arguments.max_length
        )
        estimate_fisher(
            start.model,
            everything,
            rank=64,
            response_tokens=arguments.fisher_tokens,
            max_length=arguments.max_length,
        ).save(arguments.out / "subspace_all")


def run_cell(arguments: argparse.Namespace, task: str, arm: str, seed: int, target: Path) -> None:
    """Adapt the start in one way; the plain arm's adapter is then repaired in every way."""
    start = onto_device(load_model(str(arguments.out / "start")))
    subspace = AlignmentSubspace.load(arguments.out / "subspace", start.model)
    rows = load_task(str(arguments.data / f"tasks/{TASKS[task]}.jsonl"))
    if task == "alpaca":
        # The first ones taught the start, the last ones are held back.
        held_back = arguments.task_samples + (SEEN_TASK_SAMPLES if arguments.unseen else 0)
        rows = rows.select(range(arguments.answers, len(rows) - held_back))
    probe, fresh = _probes(arguments, start)
    judge = Judge(arguments, start, task=task, probe=probe, fresh=fresh)
    scoring = Scoring(judge, arguments.at if arm == "plain" else [arguments.steps], subspace)
    options: dict[str, Any] = {
        "model": start.model,
        "args": training_config(target.with_suffix(".work"), arguments, seed),
        "train_dataset": rows,
        "processing_class": start.tokenizer,
        "peft_config": lora(),
        "callbacks": [scoring],
    }
    alignment = tokenise_completions(
        balanced(load_alignment_data("builtin", split="train"), arguments.fisher_samples),
        start.tokenizer,
        arguments.max_length,
    )
    guard = {
        "subspace": subspace,
        "guard": GuardConfig(**{"probe_every": 20, **ARMS[arm]}),
        "guard_data": GuardData(probe=probe, alignment=alignment, pad_id=start.tokenizer.pad_token_id),
    }
    if arm == "kl":
        trainer = KlToStartTrainer(weight=arguments.kl_weight, **options, **guard)
    else:
        trainer = GuardedSFTTrainer(**options, **guard)
    if arm == "l2":
        trainer.add_callback(L2ToStart(weight=arguments.l2_weight))
    if arm == "plain":
        scoring.points.append({"step": 0, "scores": judge.summary(start.model)})
    began = time.perf_counter()
    trainer.train()
    cell: dict[str, Any] = {
        "task": task,
        "arm": arm,
        "seed": seed,
        "start": subspace.info.fingerprint,
        "learning_rate": arguments.rate,
        "judge_offset": arguments.judge_offset,
        "unseen": arguments.unseen,
        "device": device_name(),
        "points": scoring.points,
        "seconds_per_step": scoring.seconds_per_step,
        "seconds": time.perf_counter() - began - scoring.seconds,
    }
    log = (target.with_suffix(".work") / "guard.jsonl").read_text(encoding="utf-8").splitlines()
    cell["probe"] = [one for one in map(json.loads, log) if one["kind"] in ("probe", "warning")]
    if any(arm == source for source, _ in REPAIRED.values()):
        trainer.model.save_pretrained(adapter_of(arguments, arm, task, seed))
    write_json(target, cell)


def adapter_of(arguments: argparse.Namespace, arm: str, task: str, seed: int) -> Path:
    """Where the adapter of an arm is kept for repair."""
    return arguments.out / f"{arm}_{task}_{seed}"


def _probes(arguments: argparse.Namespace, start: Any) -> tuple[Any, Any]:
    """The probe that controllers and repairs look at, and as much again that chooses nothing."""
    rows = load_alignment_data("builtin", split="validation")
    probe = balanced(rows, 40)
    known = {json.dumps(prompt) for prompt in probe["prompt"]}
    fresh = balanced(rows.filter(lambda row: json.dumps(row["prompt"]) not in known), 40)
    first, second = (tokenise_completions(part, start.tokenizer, arguments.max_length) for part in (probe, fresh))
    return first, second


def run_repairs(
    arguments: argparse.Namespace, task: str, seed: int, target: Path, arm: str, repairs: dict[str, dict[str, Any]]
) -> None:
    """Repair an arm's adapter in every way, each time from its trained state."""
    start = onto_device(load_model(str(arguments.out / "start")))
    probe, fresh = _probes(arguments, start)
    judge = Judge(arguments, start, task=task, probe=probe, fresh=fresh)
    model = PeftModel.from_pretrained(start.model, str(adapter_of(arguments, arm, task, seed)), is_trainable=True)
    model.eval()
    names = {str(options.get("subspace", "subspace")) for options in repairs.values()} | {"subspace"}
    spaces = {name: AlignmentSubspace.load(arguments.out / name, start.model) for name in names}
    trained = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    wanted = {name: options for name, options in repairs.items() if name not in arguments.without}
    needed = any(options.get("method") == "safe_lora" for options in wanted.values())
    unaligned = onto_device(load_model()).model if needed else None
    unrepaired = judge.drift(model)
    found = {}
    for name, options in wanted.items():
        settings = dict(options)
        subspace = spaces[settings.pop("subspace", "subspace")]
        subspace = subspace.truncated(settings.pop("rank", arguments.subspace_rank))
        if "left" in settings:
            settings["drift_budget"] = settings.pop("left") * unrepaired
        began = time.perf_counter()
        report = repair(
            model,
            subspace,
            measure=lambda: judge.drift(model),
            unaligned=unaligned if settings.get("method") == "safe_lora" else None,
            options=PeerOptions(),
            **settings,
        )
        seconds = time.perf_counter() - began
        found[name] = {
            "scores": judge.summary(model, subspace),
            "strength": report.strength,
            "removed": report.removed,
            "directions": max(
                round(one.strength * layer.rank)
                for one, layer in zip(report.layers, subspace.match(lora_layers(model)), strict=True)
            ),
            "met": report.met,
            "seconds": seconds,
        }
        with torch.no_grad():
            for parameter, value in trained.items():
                model.get_parameter(parameter).copy_(value)
    cell = {"task": task, "seed": seed, "start": spaces["subspace"].info.fingerprint}
    cell |= {"judge_offset": arguments.judge_offset, "unseen": arguments.unseen, "device": device_name()}
    write_json(target, {**cell, "repairs": found})


def run(arguments: argparse.Namespace) -> None:
    """Work through the grid; a cell that another worker has taken is left to it."""
    for seed, task, arm in itertools.product(arguments.seeds, arguments.tasks, [*arguments.arms, *REPAIRED]):
        target = arguments.out / f"cell_{task}_{arm.replace(' ', '').replace(',', '-')}_{seed}.json"
        if arm in REPAIRED and not adapter_of(arguments, REPAIRED[arm][0], task, seed).is_dir():
            continue
        with claimed(target) as mine:
            if mine:
                print(f"{task}, {arm}, seed {seed}", flush=True)
                if arm in REPAIRED:
                    run_repairs(arguments, task, seed, target, *REPAIRED[arm])
                else:
                    run_cell(arguments, task, arm, seed, target)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("start", make_start), ("subspaces", make_subspaces), ("run", run), ("table", print_tables)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--out", type=Path, required=True)
        if name == "table":
            continue
        command.add_argument("--data", type=Path, required=True, help="directory with tasks/ and safety/")
        command.add_argument("--max-length", type=int, default=128)
        command.add_argument("--steps", type=int, default=60)
        command.add_argument("--start-steps", type=int, default=200, help="at most")
        command.add_argument("--start-every", type=int, default=20, help="steps between two looks at the refusals")
        command.add_argument("--start-rate", type=float, default=5e-4)
        command.add_argument("--answers", type=int, default=400, help="Alpaca answers that the start learns from")
        command.add_argument("--fisher-samples", type=int, default=96)
        command.add_argument("--fisher-tokens", type=int, default=OPENING, help="first response tokens")
        command.add_argument("--subspace-rank", type=int, default=32)
        command.add_argument("--rate", type=float, default=2e-4)
        command.add_argument(
            "--judged", type=int, default=60 if name == "start" else 100, help="prompts of either kind"
        )
        command.add_argument(
            "--judge-offset", type=int, default=2 if name == "run" else 0, help="which of the prompts; 0: for tuning"
        )
        command.add_argument("--task-samples", type=int, default=100)
        command.add_argument(
            "--unseen", action="store_true", help="judge by prompts and task samples that no earlier run was judged by"
        )
        if name == "run":
            command.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
            command.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
            command.add_argument("--seeds", nargs="+", type=int, default=[0])
            command.add_argument("--at", nargs="+", type=int, default=[20, 40, 60])
            command.add_argument("--l2-weight", type=float, default=0.05)
            command.add_argument("--kl-weight", type=float, default=1.0)
            command.add_argument("--without", nargs="*", default=[], help="repairs that are not wanted")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
