"""``loralign diagnose``."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

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
    without_shared: int = typer.Option(
        0,
        "--without-shared",
        min=0,
        metavar="P",
        help="Also read γ with the P input directions per layer taken out that all objectives share; takes a second "
        "pass over the pairs, 8 is a good number, 0 is off.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print attenuation, norms, conflicts and what they mean."""
    from loralign.runs import diagnose as measure

    settings = ["--max_length", str(max_length)]
    found = measure(
        subject,
        data,
        pairs=pairs,
        rank=rank,
        target_weights=target_weight,
        settings=settings,
        without_shared=without_shared,
    )
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
    print_cosines("Cosines between the objectives' gradients", record["objectives"], record["cosine"])
    if found.without_shared is not None:
        print_without_shared(record["objectives"], record["attenuation"], found.without_shared)
    console.print()
    print_sentences(found.sentences)


def print_without_shared(names: list[str], attenuation: dict[str, Any], shared: dict[str, Any]) -> None:
    """What remains without the shared input directions, beside what there was."""
    rows = [
        (name, *(_number(one[name], ".3f") for one in (attenuation, shared["shared_energy"], shared["attenuation"])))
        for name in names
    ]
    headings = ("objective", "reached γ", "energy in shared", "reached γ without")
    print_table(f"Without the {shared['directions']} input directions that all objectives share most", headings, rows)
    print_cosines("Cosines of what remains", names, shared["cosine"])


def print_cosines(title: str, names: list[str], cosine: dict[str, list[list[float | None]]]) -> None:
    """Cosines of every pair of objectives before LoRA and within its reach; nothing for one objective."""
    rows = [
        (f"{first} / {second}", *(_number(cosine[space][i][j], "+.3f") for space in ("full", "accessible")))
        for (i, first), (j, second) in combinations(enumerate(names), 2)
    ]
    if rows:
        print_table(title, ("pair", "full space", "within LoRA's reach"), rows)


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else f"{value:{form}}"
