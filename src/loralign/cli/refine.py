"""``loralign refine``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from loralign.cli.show import console, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "refine", help="Rewrite an adapter's factors: the same function, better conditioned or a better subspace."
    )(refine)


def refine(
    adapter: str = typer.Argument(help="A PEFT LoRA adapter's directory."),
    output: Path = typer.Option(..., "--output", "-o", help="Where the refined adapter goes."),
    mode: str = typer.Option("condition", "--mode", help="condition, gradient or balanced (both measure --data)."),
    data: list[str] = typer.Option([], "--data", help="NAME=SOURCE or labelled SOURCE; repeatable."),
    pairs: int = typer.Option(24, "--pairs", min=1, help="Pairs measured, spread over the objectives."),
    tolerance: float = typer.Option(1e-3, "--tolerance", help="Share of a layer's squared norm that may be dropped."),
    scale: str = typer.Option("balanced", "--scale", help="balanced, or rows to keep A's row norm."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Refine and print what changed."""
    from loralign.runs import refine_adapter

    report = refine_adapter(adapter, output, mode=mode, sources=data, pairs=pairs, tolerance=tolerance, scale=scale)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
        return
    if report.attenuation_before and report.attenuation_after:
        rows = [
            (name, f"{before:.3f}", f"{report.attenuation_after[name]:.3f}")
            for name, before in report.attenuation_before.items()
        ]
        print_table("Attenuation γ", ("objective", "before", "after"), rows)
    total = sum(len(layer.spectrum) for layer in report.layers)
    console.print(
        f"{report.replaced} of {total} rows of A have new directions; no layer's update changed by more than "
        f"{report.function_change:.2%}",
        markup=False,
    )
    console.print(f"adapter  {output}", markup=False, soft_wrap=True)
