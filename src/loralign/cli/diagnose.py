"""``loralign diagnose``."""

from __future__ import annotations

import json

import typer

from loralign.cli.show import console, print_sentences, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "diagnose",
        help="Measure what LoRA does to each objective's gradient, without training: reach, conflicts, distortions.",
    )(diagnose)


def diagnose(
    subject: str | None = typer.Argument(None, help="An adapter's directory, or a model for a fresh adapter."),
    data: list[str] = typer.Option(["builtin"], "--data", help="NAME=SOURCE or labelled SOURCE; repeatable."),
    pairs: int = typer.Option(24, "--pairs", min=1, help="Pairs measured, spread over the objectives."),
    rank: int = typer.Option(16, "--rank", min=1, help="Rank of a fresh adapter."),
    max_length: int = typer.Option(256, "--max-length", help="Pairs longer than this many tokens are left out."),
    target_weight: list[str] = typer.Option([], "--target-weight", help="NAME=NUMBER; repeatable."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print attenuation, norms, conflicts and what they mean."""
    from loralign.runs import diagnose as measure

    settings = ["--max_length", str(max_length)]
    found = measure(subject, data, pairs=pairs, rank=rank, target_weights=target_weight, settings=settings)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    record = found.record
    rows = [
        (
            name,
            f"{record['samples'][name]:.0f}",
            f"{record['attenuation'][name]:.3f}",
            f"{record['gradient_norm']['full'][name]:.3g}",
            f"{record['gradient_norm']['euclidean'][name]:.3g}",
            f"{found.suggested['norm'][name]:.2f}",
            f"{found.suggested['geo'][name]:.2f}",
        )
        for name in record["objectives"]
    ]
    headings = ("objective", "pairs", "reached γ", "norm", "norm on A, B", "w Norm", "w Geo")
    print_table("What LoRA reaches of each objective's gradient", headings, rows)
    names = record["objectives"]
    cosine = record["cosine"]["full"]
    conflicts = [
        (f"{first} / {second}", f"{cosine[i][j]:+.3f}", f"{record['cosine']['accessible'][i][j]:+.3f}")
        for i, first in enumerate(names)
        for j, second in enumerate(names)
        if i < j
    ]
    if conflicts:
        print_table(
            "Cosines between the objectives' gradients", ("pair", "full space", "within LoRA's reach"), conflicts
        )
    console.print()
    print_sentences(found.sentences)
