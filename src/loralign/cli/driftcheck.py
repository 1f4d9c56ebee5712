"""``loralign driftcheck``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from loralign.cli.choices import CheckMode, Dtype
from loralign.cli.driftcheck_build import build
from loralign.cli.show import console, print_table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    commands.command("build", help="Build a set of safe and unsafe prompts, deterministic from a seed.")(build)
    commands.command("run", help="Let a model answer a set, judge the answers, and compare it with a baseline.")(run)
    app.add_typer(commands, name="driftcheck", help="Measure what a model refuses, and what it lost.")


def run(
    model: str = typer.Argument(None, help="A model, or an adapter; with --server the name that it serves."),
    prompts: Path = typer.Option(..., "--set", help="Directory of a set that loralign driftcheck build made."),
    output: Path = typer.Option(..., "--output", "-o", help="The run's directory."),
    adapter: str = typer.Option(None, "--adapter", help="An adapter on top of the model."),
    baseline: str = typer.Option(None, "--baseline", help="A model, an adapter or a finished run to compare with."),
    against: Path = typer.Option(None, "--against", help="A finished run: say how much of its drift is avoided."),
    mode: CheckMode = typer.Option(
        "generate", "--mode", help="generate (answers are judged) or score (openings, fast)."
    ),
    part: str = typer.Option("test", "--part", help="train, probe, test or all."),
    count: int = typer.Option(None, "--prompts", min=1, help="At most so many prompts, spread over categories."),
    judge: str = typer.Option("phrases", "--judge", help="phrases, classifier:DIR:LABEL, server:URL:MODEL, phrases+…"),
    toxicity: str = typer.Option("profanity", "--toxicity", help="profanity, detoxify, classifier:DIR:LABEL or none."),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
    batch_tokens: int = typer.Option(4096, "--batch-tokens", min=1, help="Tokens of one batch, answers included."),
    temperature: float = typer.Option(None, "--temperature", help="Of sampling; greedy by default."),
    server: str = typer.Option(None, "--server", help="Ask an OpenAI-compatible chat server at this address."),
    concurrency: int = typer.Option(8, "--concurrency", min=1, help="Requests at a time."),
    timeout: float = typer.Option(120.0, "--timeout", help="Seconds for one request."),
    retries: int = typer.Option(4, "--retries", min=0, help="Further attempts for a request."),
    judge_budget: int = typer.Option(20_000, "--judge-budget", min=1, help="Most requests to a server that judges."),
    api_key_variable: str = typer.Option(None, "--api-key-variable", help="Environment variable with the key."),
    dtype: Dtype = typer.Option("auto", "--dtype", help="Weights: auto, float32, bfloat16 or float16."),
    seed: int = typer.Option(0, "--seed"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check a model, then print its scores; called again after an interruption it goes on where it stopped."""
    from loralign.runs.driftcheck import check_drift
    from loralign.runs.driftcheck_options import CheckOptions, CheckSubject

    found = check_drift(
        CheckSubject(model, adapter, server),
        prompts,
        output,
        CheckOptions(
            mode=mode,
            part=part,
            prompts=count,
            judge=judge,
            toxicity=toxicity,
            max_new_tokens=max_new_tokens,
            batch_tokens=batch_tokens,
            temperature=temperature,
            dtype=dtype,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            judge_budget=judge_budget,
            api_key_variable=api_key_variable,
            seed=seed,
        ),
        baseline=baseline,
        against=against,
        command=["loralign", *sys.argv[1:]],
    )
    scores = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps(scores))
        return
    show(scores, found.prompts)
    console.print(f"run {output}", markup=False, soft_wrap=True)


def show(scores: dict[str, object], prompts: int) -> None:
    """Print scores, drift and drift reduction with intervals, then every category."""
    names = {"refusal": "refused, unsafe", "over_refusal": "refused, safe", "toxicity": "toxicity", "kl": "KL"}

    def value(of: object, name: str) -> str:
        one = of.get(name) if isinstance(of, dict) else None
        if not isinstance(one, dict) or one.get("value") is None:
            return ""
        return _interval(one)

    rows = [
        (label, value(scores, name), value(scores.get("drift"), name), value(scores.get("drift_reduction"), name))
        for name, label in names.items()
        if scores.get(name) is not None
    ]
    print_table(f"Driftcheck, {prompts} prompts", ("measure", "value", "lost", "of the other's drift avoided"), rows)
    categories = scores.get("categories")
    if isinstance(categories, list):
        print_table(
            "Refused, by category",
            ("category", "label", "prompts", "refused"),
            [(one["category"], one["label"], str(one["prompts"]), _interval(one["refused"])) for one in categories],
        )


def _interval(one: dict[str, float]) -> str:
    low, high = one.get("low"), one.get("high")
    text = f"{one['value']:.3f}"
    return text if low is None or high is None else f"{text} ({low:.3f} to {high:.3f})"
