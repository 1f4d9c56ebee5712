"""``loralign adapt``."""

from __future__ import annotations

import json

import typer

from loralign.cli.show import console, print_sentences, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "adapt",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        help="Fine-tune on a task while the model's alignment is held. --guard none is plain LoRA.",
    )(adapt)


def adapt(context: typer.Context) -> None:
    """Parse a recipe, run it, print what was gained and what was lost."""
    from loralign.report import SCORE_HEADINGS, adaptation_headline, explain_guard, score_rows
    from loralign.runs import parse_adapt_recipe, run_adaptation
    from loralign.runs.adapt_recipe import ADAPT

    arguments = list(context.args)
    if {"--help", "-h"} & set(arguments):
        typer.echo(short_help() if "--all" not in arguments else ADAPT.parser().format_help())
        return
    as_json = "--json" in arguments
    result = run_adaptation(parse_adapt_recipe([word for word in arguments if word != "--json"]))
    if result.scores is None or result.run is None:
        return
    if as_json:
        scores = result.scores.to_json()
        typer.echo(json.dumps({"adapter": str(result.adapter), "report": str(result.report), "scores": scores}))
        return
    console.print()
    console.print(adaptation_headline(result.run), markup=False)
    console.print()
    print_table("Gained and lost", SCORE_HEADINGS, score_rows(result.run))
    console.print()
    print_sentences(explain_guard(result.run))
    console.print()
    console.print(f"adapter  {result.adapter}", markup=False, soft_wrap=True)
    console.print(f"report   {result.report}", markup=False, soft_wrap=True)


def short_help() -> str:
    """Help that fits a screen: our own fields, and TRL's that matter most."""
    from loralign.cli.show import field_lines
    from loralign.runs.adapt_recipe import ADAPT_DEFAULTS, AdaptArguments
    from loralign.training import GuardConfig

    lines = [
        "Usage: loralign adapt [MODEL] --data task.jsonl [--config recipe.yaml] [--FIELD VALUE ...] [--json]",
        "",
        "Fine-tune a model, or a model with an alignment adapter, on a task with LoRA while its alignment is held.",
        "Flags override the recipe. Examples:",
        "",
        "  loralign adapt runs/align/adapter --data task.jsonl --drift_budget 0.05 --output_dir runs/guarded",
        "  loralign adapt runs/align/adapter --data task.jsonl --guard none --output_dir runs/plain",
        "",
        "Run:",
        *field_lines(AdaptArguments),
        "",
        "Guard:",
        *field_lines(GuardConfig),
        "",
        "Training (TRL's SFTConfig; these are our defaults, --help --all lists every field):",
        *(f"  --{name:<26} [{value}]" for name, value in ADAPT_DEFAULTS.items()),
    ]
    return "\n".join(lines)
