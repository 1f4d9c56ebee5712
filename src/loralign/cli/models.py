"""``loralign models``."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from loralign.cli.show import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("models", help="List the models that can be named without a path, and whether they are installed.")(
        models
    )


def models(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Print the known models."""
    from loralign.models import known_models

    known = known_models()
    if as_json:
        typer.echo(json.dumps([asdict(model) for model in known]))
        return
    words = {True: "installed", False: "not installed", None: "from the hub"}
    rows = [(model.name, model.parameters, model.licence, words[model.installed]) for model in known]
    print_table("Known models", ("name", "size", "licence", "where"), rows)
    for model in known:
        if model.install and not model.installed:
            typer.echo(f"to install {model.name}: {model.install}")
