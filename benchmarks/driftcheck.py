"""Time of driftcheck's two modes, as ratios to a plain loop over the prompts and to each other.

SmolLM2-135M and bundled prompts of driftcheck. In every repeat each arm runs once, in a new random order; a ratio is a
median over repeats of the quotients within a repeat::

    python benchmarks/driftcheck.py --repeats 3

The arms:

- ``plain loop``: one prompt after the other through the chat template and ``model.generate``, greedy.
- ``generate``: ``generate_answers``, as ``loralign driftcheck run`` uses it.
- ``score``: ``score_prompts``, the openings in place of answers, as ``--mode score`` does without a baseline.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loralign.data.driftcheck import DriftPrompt, build_driftcheck, load_driftcheck
from loralign.evaluation import generate_answers
from loralign.evaluation.responding import conversations
from loralign.evaluation.score_mode import score_prompts
from loralign.models import load_model
from ratios import Comparison, add_output_options, compare, positive, show
from timing import Clock, interleave, machine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path, wheel or hub name; SmolLM2-135M-Instruct by default")
    parser.add_argument("--prompts", type=positive, default=96)
    parser.add_argument("--max-new-tokens", type=positive, default=64)
    parser.add_argument("--batch-tokens", type=positive, default=4096)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--warmup", type=positive, default=1, help="repeats that are not counted")
    parser.add_argument("--seed", type=int, default=0)
    add_output_options(parser)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    prompts = choose(arguments.prompts, arguments.seed)
    clock = Clock()
    runs = arms(loaded.model, loaded.tokenizer, prompts, arguments)
    interleave(clock, runs, repeats=arguments.repeats, warmup=arguments.warmup, seed=arguments.seed)
    settings = {
        **machine("transformers"),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "prompts": len(prompts),
        "new tokens at most": arguments.max_new_tokens,
        "batch tokens": arguments.batch_tokens,
        "repeats": arguments.repeats,
        "unit": "s",
    }
    show(arguments, table(clock.samples), dict(clock.samples), settings)


def choose(count: int, seed: int) -> list[DriftPrompt]:
    """So many bundled prompts, half of them unsafe."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "prompts"
        build_driftcheck(["builtin"], place, safe=count // 2, unsafe=count - count // 2, seed=seed)
        return list(load_driftcheck(place).prompts)


def arms(
    model: Any, tokenizer: Any, prompts: list[DriftPrompt], arguments: argparse.Namespace
) -> dict[str, Callable[[int], None]]:
    """What is timed, by name."""
    asked = conversations(prompts)

    def plain_loop(_: int) -> None:
        for conversation in asked:
            inputs = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
            with torch.no_grad():
                tokens = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
            tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def generate(_: int) -> None:
        generate_answers(
            model,
            tokenizer,
            asked,
            max_new_tokens=arguments.max_new_tokens,
            batch_tokens=arguments.batch_tokens,
            show_progress=False,
        )

    def score(_: int) -> None:
        score_prompts(model, tokenizer, prompts, batch_tokens=arguments.batch_tokens, show_progress=False)

    return {"plain loop": plain_loop, "generate": generate, "score": score}


def table(samples: dict[str, list[float]]) -> list[Comparison]:
    """The ratios that have a target."""
    return [
        compare("generate mode / plain loop", samples["generate"], samples["plain loop"], 1 / 6),
        compare("score mode / generate mode", samples["score"], samples["generate"], 1 / 10),
    ]


if __name__ == "__main__":
    main()
