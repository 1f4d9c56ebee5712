"""How well score mode, which generates nothing, ranks models and prompts as generate mode does.

Models between an aligned start and its plain task adapter are made by repairing the adapter by several strengths and by
scaling it; each is asked the same bundled prompts in both modes. Over models the rank correlation of the mean scores is
taken, within a model the probability that a refused prompt has the greater margin (AUROC). Finished models are kept::

    python experiments/guard_arms.py start --data DIR --out results        # once, see there
    python experiments/guard_arms.py run --data DIR --out results --tasks alpaca --arms plain
    python experiments/driftcheck_modes.py --out results --prompts 200
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from scipy.stats import rankdata, spearmanr

from loralign.data.driftcheck import build_driftcheck, load_driftcheck
from loralign.evaluation import PhraseJudge, generate_answers
from loralign.evaluation.responding import conversations
from loralign.evaluation.score_mode import score_prompts
from loralign.files import write_json
from loralign.guard import AlignmentSubspace, repair
from loralign.models import load_model

STEPS = {
    "start": ("scale", 1.0),
    "repaired by 1": ("fisher", 1.0),
    "repaired by 0.75": ("fisher", 0.75),
    "repaired by 0.5": ("fisher", 0.5),
    "scaled by 0.5": ("scale", 0.5),
    "scaled by 0.75": ("scale", 0.25),
    "plain": ("scale", 0.0),
}


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="of guard_arms.py")
    parser.add_argument("--adapter", default="plain_alpaca_0", help="directory in it")
    parser.add_argument("--prompts", type=int, default=200, help="half of them unsafe")
    arguments = parser.parse_args()
    record = arguments.out / f"driftcheck_modes_{arguments.adapter}_{arguments.prompts}.json"
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if set(found) != set(STEPS):
        measure(arguments, found, record)
    show(found)


def measure(arguments: argparse.Namespace, found: dict[str, Any], record: Path) -> None:
    """Ask every model in both modes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "prompts"
        build_driftcheck(["builtin"], place, safe=arguments.prompts // 2, unsafe=arguments.prompts // 2, seed=0)
        prompts = list(load_driftcheck(place).prompts)
    start = load_model(str(arguments.out / "start"))
    subspace = AlignmentSubspace.load(arguments.out / "subspace", start.model)
    model = PeftModel.from_pretrained(start.model, str(arguments.out / arguments.adapter), is_trainable=True).eval()
    trained = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    judge = PhraseJudge()
    for name, (method, strength) in STEPS.items():
        if name in found:
            continue
        repair(model, subspace, method=method, strength=strength)
        began = time.perf_counter()
        answers = generate_answers(
            model, start.tokenizer, conversations(prompts), max_new_tokens=32, show_progress=False
        )
        middle = time.perf_counter()
        scores = score_prompts(model, start.tokenizer, prompts, show_progress=False)
        found[name] = {
            "labels": scores["label"],
            "margins": scores["refusal_margin"],
            "refused": [judge.is_refusal(one.prompt, text) for one, text in zip(prompts, answers, strict=True)],
            "seconds": [middle - began, time.perf_counter() - middle],
        }
        write_json(record, found)
        print(name, found[name]["seconds"], flush=True)
        with torch.no_grad():
            for parameter, value in trained.items():
                model.get_parameter(parameter).copy_(value)


def show(found: dict[str, Any]) -> None:
    """A row a model and the rank correlation over models, for unsafe and for safe prompts."""
    print(
        "| model | refused, unsafe | probability, unsafe | refused, safe | probability, safe | AUROC within the model |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    columns: dict[str, list[float]] = {"unsafe": [], "safe": []}
    others: dict[str, list[float]] = {"unsafe": [], "safe": []}
    for name in STEPS:
        one = found[name]
        labels, refused = np.array(one["labels"]), np.array(one["refused"], dtype=bool)
        margins = np.array(one["margins"])
        probability = 1 / (1 + np.exp(-margins))
        cells = []
        for label in columns:
            columns[label].append(float(refused[labels == label].mean()))
            others[label].append(float(probability[labels == label].mean()))
            cells += [f"{columns[label][-1]:.3f}", f"{others[label][-1]:.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {auroc(margins, refused):.3f} |")
    for label in columns:
        rank = spearmanr(columns[label], others[label]).statistic
        print(f"rank correlation over {len(STEPS)} models, {label} prompts: {rank:.3f}")
    seconds = np.array([found[name]["seconds"] for name in STEPS])
    print(f"generate mode took {np.median(seconds[:, 0] / seconds[:, 1]):.1f} times as long (32 new tokens)")


def auroc(margins: np.ndarray, refused: np.ndarray) -> float:
    """Probability that a refused prompt has a greater margin than one that was answered; ties count half."""
    positive = int(refused.sum())
    if positive in (0, len(refused)):
        return float("nan")
    ranks = rankdata(margins)
    return float((ranks[refused].sum() - positive * (positive + 1) / 2) / (positive * (len(refused) - positive)))


if __name__ == "__main__":
    main()
