"""Entry point: one typer application, and every error of ours in one line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

import typer

from loralign import __version__
from loralign.cli import (
    ablate,
    adapt,
    align,
    compare,
    controller,
    demo,
    diagnose,
    driftcheck,
    evaluate,
    fisher,
    models,
    refine,
    repair,
    report,
    scaling,
    sensitivity,
    stability,
    sweep,
    tasks,
)
from loralign.errors import LoralignError

app = typer.Typer(
    name="loralign",
    help="Align a language model for several objectives through LoRA, adapt it without losing that, and know both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    align,
    diagnose,
    evaluate,
    refine,
    fisher,
    adapt,
    repair,
    driftcheck,
    tasks,
    report,
    compare,
    ablate,
    sweep,
    controller,
    stability,
    sensitivity,
    scaling,
    models,
    demo,
):
    command.register(app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"loralign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Align a language model for several objectives through LoRA, adapt it without losing that, and know both."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a fault that the user can mend, 130 interrupted."""
    quieten()
    try:
        code = app(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except LoralignError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; repeat the command to go on, align and adapt with --resume true", err=True)
        sys.exit(130)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        # Usage errors of typer's own command-line library, whichever copy of it is installed.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            sys.exit(2)
        raise
    sys.exit(code or 0)


def quieten() -> None:
    """Leave the screen to our own progress: the libraries' chatter only from warnings on."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # An adapter names its base as any machine knows it, which PEFT looks for as a directory whenever it saves.
    warnings.filterwarnings("ignore", message="Could not find a config file in", category=UserWarning)
    for pattern in (".*gradient_checkpointing.*", ".*is_gradient_checkpointing.*"):
        # Names that transformers has renamed and that TRL and PEFT still use.
        warnings.filterwarnings("ignore", message=pattern, category=FutureWarning)
