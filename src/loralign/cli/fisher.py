"""``loralign fisher``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from loralign.cli.choices import Dtype
from loralign.cli.show import console, print_table

_BARS = " ▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "fisher",
        help="Estimate the directions that carry a model's alignment, or show them: loralign fisher show DIR.",
    )(fisher)


def fisher(
    model: str = typer.Argument(None, help="A model or an alignment adapter; or the word show."),
    directory: Path | None = typer.Argument(None, help="With show: the directory of a subspace."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Where the subspace goes."),
    data: list[str] = typer.Option(["builtin"], "--data", help="Prompts with responses that must survive; repeatable."),
    generate: bool = typer.Option(
        False, "--generate", help="Let the model write the responses, and keep those that are as they should be."
    ),
    kind: str = typer.Option("empirical", "--kind", help="empirical (these responses) or sampled (the model's own)."),
    method: str = typer.Option("auto", "--method", help="exact, sketched or auto."),
    samples: int = typer.Option(96, "--samples", min=2, help="Samples, spread over labels and categories."),
    energy: float = typer.Option(
        0.8, "--energy", help="Share of the Fisher trace that the rank of a layer is to reach."
    ),
    rank: int = typer.Option(None, "--rank", min=1, help="A fixed rank for every layer instead."),
    max_rank: int = typer.Option(64, "--max-rank", min=1, help="Largest rank."),
    target_modules: list[str] = typer.Option(["all-linear"], "--target-modules", help="Layers; repeatable."),
    batch_size: int = typer.Option(8, "--batch-size", min=1, help="Samples per backward pass."),
    max_length: int = typer.Option(256, "--max-length", min=8, help="Longest sample in tokens."),
    dtype: Dtype = typer.Option("auto", "--dtype", help="Base weights: auto, float32, bfloat16 or float16."),
    load_in_4bit: bool = typer.Option(False, "--load-in-4bit", help="Quantise the base."),
    revision: str = typer.Option(None, "--revision", help="Hub revision of the model."),
    response_tokens: int = typer.Option(
        None, "--response-tokens", min=0, help="First response tokens that count: 2 by default; 0 is all of them."
    ),
    seed: int = typer.Option(0, "--seed"),
    picture: Path | None = typer.Option(None, "--picture", help="Draw the energy curves into this HTML file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Estimate or show, then print every layer's rank and energy."""
    from loralign.errors import ConfigError
    from loralign.guard import AlignmentSubspace
    from loralign.guard.fisher_options import OPENING
    from loralign.report import render_energy
    from loralign.runs import describe_subspace, estimate_subspace

    if model == "show":
        if directory is None:
            raise ConfigError("there is nothing to show", place="fisher show", fix="name the directory of a subspace")
        subspace = AlignmentSubspace.load(directory)
    elif directory is not None:
        raise ConfigError(
            f"{directory} is one word too many", place="fisher", fix="name one model, or write show first"
        )
    else:
        if output is None:
            raise ConfigError("the subspace has no place to go", place="--output", fix="name a new directory")
        subspace = estimate_subspace(
            model,
            output,
            data=data,
            samples=samples,
            target_modules=target_modules,
            max_length=max_length,
            generate=generate,
            dtype=dtype,
            load_in_4bit=load_in_4bit,
            revision=revision,
            kind=kind,
            method=method,
            energy=energy,
            rank=rank,
            max_rank=max_rank,
            batch_size=batch_size,
            seed=seed,
            response_tokens=OPENING if response_tokens is None else response_tokens,
        )
    if picture is not None:
        render_energy(subspace, picture)
    if as_json:
        typer.echo(json.dumps(describe_subspace(subspace)))
        return
    show_subspace(subspace)
    if model != "show":
        console.print(f"subspace {output}", markup=False, soft_wrap=True)
    if picture is not None:
        console.print(f"picture  {picture}", markup=False, soft_wrap=True)


def show_subspace(subspace: object) -> None:
    """Print rank, energy and the curve of captured energy of every layer."""
    from loralign.guard import AlignmentSubspace

    if not isinstance(subspace, AlignmentSubspace):
        return
    rows = []
    for name, layer in subspace.layers.items():
        curve = [0.0, *subspace.energy_curve(name).tolist()]
        marks = [curve[round(position * (len(curve) - 1) / 8)] for position in range(1, 9)]
        bars = "".join(_BARS[min(8, max(0, round(8 * value)))] for value in marks)
        agreement = "" if layer.half_agreement is None else f"{layer.half_agreement:.2f}"
        rows.append((name, str(layer.rank), f"{layer.energy:.0%}", bars, agreement))
    print_table("Alignment subspace", ("layer", "rank", "energy", "energy by rank", "halves agree"), rows)
    info = subspace.info
    energies = [layer.energy for layer in subspace.layers.values()]
    counted = "whole responses" if info.response_tokens is None else f"their first {info.response_tokens} tokens"
    console.print(
        f"{len(rows)} layers of {info.model or 'a model without a name'}, {info.kind} Fisher of {info.samples} samples"
        f", {counted} ({info.method}); the subspaces hold {min(energies):.0%} to {max(energies):.0%} of it",
        markup=False,
    )
