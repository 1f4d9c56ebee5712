"""``loralign evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from loralign.cli.choices import Dtype
from loralign.cli.show import print_table

_COLUMNS = (
    "accuracy_normalised",
    "accuracy_reward",
    "margin",
    "kl_policy_reference",
    "kl_reference_policy",
    "log_ratio",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate", help="Score an adapter on preference pairs: accuracy, margins and drift, with intervals.")(
        evaluate
    )


def evaluate(
    adapter: Path = typer.Argument(help="A PEFT LoRA adapter's directory."),
    data: list[str] = typer.Option(["builtin:validation"], "--data", help="NAME=SOURCE or a labelled SOURCE."),
    model: str | None = typer.Option(None, "--model", help="Base model; by default the one that the adapter names."),
    dtype: Dtype = typer.Option("auto", "--dtype", help="float32 resolves drifts that bfloat16 rounds away."),
    max_length: int = typer.Option(1024, "--max-length", help="Tokens of prompt and response."),
    beta: float = typer.Option(0.1, "--beta", help="DPO's beta, for margins and losses."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    save: Path | None = typer.Option(None, "--save", help="Also keep the values of every pair (safetensors)."),
) -> None:
    """Print scores of the adapter, of its base, and the difference."""
    from loralign.runs import evaluate_adapter

    result = evaluate_adapter(adapter, data, model=model, dtype=dtype, max_length=max_length, beta=beta)
    if save is not None:
        result.pairs.save(save)
    if as_json:
        parts = {"after": result.after, "before": result.before, "difference": result.difference}
        typer.echo(json.dumps({"version": 1, **{name: scores.to_json() for name, scores in parts.items()}}))
        return
    for title, scores in (("Adapter", result.after), ("Base", result.before), ("Difference", result.difference)):
        rows = scores.table(_COLUMNS)
        print_table(title, list(rows[0]), [list(row.values()) for row in rows])
