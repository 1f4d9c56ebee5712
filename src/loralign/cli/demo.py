"""``loralign demo``."""

from __future__ import annotations

from pathlib import Path

import typer

from loralign.cli.compare import show_story
from loralign.cli.show import console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "demo",
        help="The whole story on bundled data: align SmolLM2-135M-Instruct, adapt it with and without a guard, repair, "
        "measure, report. About twelve minutes on two cores; taken up again where it stopped.",
    )(demo)


def demo(
    output: Path = typer.Option(Path("runs/demo"), "--output", "-o", help="Where everything goes."),
    model: str = typer.Option(None, "--model", help="Another model to align."),
    weighting: str = typer.Option("geo", "--weighting", help="How the objectives are weighted."),
    teach_steps: int = typer.Option(24, "--teach-steps", min=1, help="Optimiser steps of the lesson before it."),
    align_steps: int = typer.Option(6, "--align-steps", min=1, help="Optimiser steps of the alignment."),
    adapt_steps: int = typer.Option(16, "--adapt-steps", min=1, help="Optimiser steps of each adaptation."),
    scored: int = typer.Option(64, "--scored", min=1, help="Prompts whose openings are scored."),
    answered: int = typer.Option(100, "--answered", min=1, help="Prompts that are answered."),
    max_length: int = typer.Option(128, "--max-length", min=8, help="Longest sample in tokens."),
    seed: int = typer.Option(0, "--seed"),
) -> None:
    """Run what is not yet done, and print the same table as ``loralign compare``."""
    from loralign.runs.demo import DemoOptions, run_demo

    story, report = run_demo(
        output,
        DemoOptions(
            model=model,
            weighting=weighting,
            teach_steps=teach_steps,
            align_steps=align_steps,
            adapt_steps=adapt_steps,
            scored_prompts=scored,
            answered_prompts=answered,
            max_length=max_length,
            seed=seed,
        ),
        tell=lambda line: console.print(f"\n{line}", markup=False, soft_wrap=True),
    )
    console.print()
    show_story(story)
    console.print(f"report  {report}", markup=False, soft_wrap=True)
