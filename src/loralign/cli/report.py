"""``loralign report``."""

from __future__ import annotations

from pathlib import Path

import typer

from loralign.cli.show import console

_RECORDS = (".json", ".jsonl", ".parquet")
"""What runs are made of; a report of theirs may lie among them under another suffix."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", help="One report of one run or many: what was gained, what was lost, with intervals.")(report)


def report(
    runs: list[str] = typer.Argument(help="Output of adapt, align, repair, driftcheck run or task scores; repeatable."),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="The file; without it HTML goes to report.html, the rest to the screen."
    ),
    cards: list[Path] = typer.Option(
        [], "--card", help="Also write what was measured into this adapter's model card; repeatable."
    ),
    form: str | None = typer.Option(None, "--format", help="html, md, json or csv; else as the file's name says."),
) -> None:
    """Write the report."""
    from loralign.files import write_text
    from loralign.report.runs import load_story, render_csv, render_json, render_markdown, render_story, update_card

    chosen = _format(form, output)
    if output is not None:
        _check_output(output, runs)
    story = load_story(runs)
    written = [update_card(story, adapter) for adapter in cards]
    if chosen == "html":
        target = output or Path("report.html")
        render_story(story, target)
    else:
        text = {"md": render_markdown, "json": render_json, "csv": render_csv}[chosen](story)
        if output is None:
            typer.echo(text, nl=False)
            return
        target = output
        write_text(target, text)
    for line in story.told:
        console.print(line, markup=False)
    for kind, path in (*(("card", card) for card in written), ("report", target)):
        console.print(f"{kind:<7} {path}", markup=False, soft_wrap=True)


def _format(form: str | None, output: Path | None) -> str:
    from loralign.errors import ConfigError
    from loralign.report.runs import FORMATS

    if form is None:
        suffix = output.suffix.lower().lstrip(".") if output is not None else ""
        return suffix if suffix in FORMATS else "html"
    if form not in FORMATS:
        raise ConfigError(f"{form!r} is no format", place="--format", fix=f"use {', '.join(FORMATS)}")
    return form


def _check_output(output: Path, runs: list[str]) -> None:
    """Make sure that the report replaces nothing that it is made from.

    Raises:
        OutputError: it would, or it is a directory.
    """
    from loralign.errors import OutputError

    if output.is_dir():
        raise OutputError("is a directory", place=str(output), fix="name a file with -o")
    if output.exists() and output.suffix.lower() in _RECORDS:
        target = output.resolve()
        if any(target == run or run in target.parents for run in (Path(run).resolve() for run in runs)):
            raise OutputError("is part of what is reported", place=str(output), fix="choose another file with -o")
