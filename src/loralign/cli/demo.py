"""``loralign demo``."""

from __future__ import annotations

from pathlib import Path

import typer

from loralign.cli.align import show_result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", help="Align SmolLM2-135M-Instruct on the bundled data with GA-LoRA-Geo: about five minutes.")(
        demo
    )


def demo(
    output: Path = typer.Option(Path("runs/demo"), "--output", "-o", help="Where the run goes."),
    steps: int = typer.Option(30, "--steps", min=1, help="Optimiser steps."),
    weighting: str = typer.Option("geo", "--weighting", help="How the objectives are weighted."),
) -> None:
    """Run the main job on the embedded default; a run that was cut off is taken up again."""
    from loralign.runs import parse_recipe, run_alignment
    from loralign.training import last_whole_checkpoint

    unfinished = last_whole_checkpoint(output) is not None and not (output / "report.html").exists()
    recipe = parse_recipe(
        [
            "--output_dir", str(output),
            "--max_steps", str(steps),
            "--weighting", weighting,
            "--measure_every", "5",
            "--learning_rate", "2e-4",
            "--max_length", "192",
            "--save_steps", "10",
            "--resume" if unfinished else "--overwrite", "true",
        ]
    )  # fmt: skip
    show_result(run_alignment(recipe))
