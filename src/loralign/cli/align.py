"""``loralign align``."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from loralign.cli.show import console, field_lines, print_sentences, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "align",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        help="Align a model for several objectives. Settings: --config recipe.yaml, overridden by any field as a flag.",
    )(align)


def align(context: typer.Context) -> None:
    """Parse a recipe, run it, print what came out."""
    from loralign.runs import parse_recipe, run_alignment
    from loralign.runs.recipe import ALIGN

    arguments = list(context.args)
    if {"--help", "-h"} & set(arguments):
        typer.echo(short_help() if "--all" not in arguments else ALIGN.parser().format_help())
        return
    as_json = "--json" in arguments
    recipe = parse_recipe([word for word in arguments if word != "--json"])
    result = run_alignment(recipe)
    if result.run is None:
        return
    if as_json:
        scores = None if result.scores is None else result.scores.to_json()
        printed = {"adapter": str(result.adapter), "report": str(result.report), "scores": scores}
        typer.echo(json.dumps(printed | ({} if result.kept is None else {"kept": asdict(result.kept)})))
        return
    show_result(result)


def show_result(result: object) -> None:
    """Print the summary of a finished run."""
    from loralign.report import SCORE_HEADINGS, SUMMARY_HEADINGS, explain_geometry, headline, summary_rows
    from loralign.report.guard_outcome import kept_rows
    from loralign.report.guard_words import guard_sentences
    from loralign.runs import AlignResult

    if not isinstance(result, AlignResult) or result.run is None:
        return
    console.print()
    console.print(headline(result.run), markup=False)
    console.print()
    print_table("Preferences on validation pairs", SUMMARY_HEADINGS, [row.cells() for row in summary_rows(result.run)])
    console.print()
    print_sentences(explain_geometry(result.run))
    if result.run.guarded is not None:
        console.print()
        print_table("What had to survive", SCORE_HEADINGS, kept_rows(result.run.guarded))
        console.print()
        print_sentences(guard_sentences(result.run.guarded))
    console.print()
    console.print(f"adapter  {result.adapter}", markup=False, soft_wrap=True)
    console.print(f"report   {result.report}", markup=False, soft_wrap=True)


def short_help() -> str:
    """Help that fits a screen: our own fields, and TRL's that matter most."""
    from loralign.runs.recipe import DEFAULTS, AlignArguments
    from loralign.training import GeometryConfig, GuardConfig

    lines = [
        "Usage: loralign align [--config recipe.yaml] [--FIELD VALUE ...] [--json]",
        "",
        "Align a model for several objectives at once with DPO and LoRA, the geometry of LoRA measured and corrected.",
        "Flags override the recipe. Example:",
        "",
        "  loralign align --data helpful=help.jsonl harmless=safe.jsonl --weighting geo --output_dir runs/a",
    ]
    for title, kind in (("Run", AlignArguments), ("Geometry", GeometryConfig), ("Guard", GuardConfig)):
        lines += ["", f"{title}:", *field_lines(kind)]
    lines += ["", "Training (TRL's DPOConfig; these are our defaults, --help --all lists every field):"]
    lines += [f"  --{name:<26} [{value}]" for name, value in DEFAULTS.items()]
    return "\n".join(lines)
