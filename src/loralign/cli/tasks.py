"""``loralign tasks``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from loralign.cli.choices import Dtype
from loralign.cli.show import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "tasks",
        help="Score a model and its adapter on tasks of lm-evaluation-harness, and the difference between them.",
        # So that several tasks may follow one --tasks.
        context_settings={"allow_extra_args": True, "allow_interspersed_args": True},
    )(tasks)


def tasks(
    context: typer.Context,
    model: str = typer.Argument(help="A model, or an adapter's directory, scored against the base that it names."),
    names: list[str] = typer.Option(
        ...,
        "--tasks",
        help="sst2=PATH, gsm8k=PATH, mmlu=PATH; a task of the harness; or glue, superglue, truthfulqa, advglue, "
        "ifeval. Several may follow.",
    ),
    output: Path = typer.Option(..., "-o", "--output", help="The JSON file to write."),
    adapter: Path | None = typer.Option(None, "--adapter", help="A PEFT LoRA adapter's directory."),
    merged: bool = typer.Option(False, "--merged", help="Score adapter and model merged as well."),
    examples: list[str] = typer.Option([], "--examples", help="NAME=PATH: solved examples for a local task."),
    limit: int | None = typer.Option(None, "--limit", help="Most documents of each task."),
    num_fewshot: int | None = typer.Option(None, "--num-fewshot", help="Solved examples before each question."),
    max_new_tokens: int | None = typer.Option(None, "--max-new-tokens", help="Longest answer."),
    batch_size: str = typer.Option("8", "--batch-size", help="Sequences at once, or auto."),
    chat_template: bool | None = typer.Option(
        None, "--chat-template/--no-chat-template", help="By default where the tokenizer has one."
    ),
    dtype: Dtype = typer.Option("auto", "--dtype", help="Of the weights."),
    seed: int = typer.Option(0, "--seed", help="Of the draw of solved examples."),
    samples: bool = typer.Option(False, "--samples", help="Also write every answer, as FILE.samples.jsonl."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file where it exists."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Print a row for every metric, with paired differences to the base, and write them."""
    from loralign.runs.task_scores import samples_path, score_tasks

    run = score_tasks(
        model,
        adapter,
        [*names, *context.args],
        output,
        examples=examples,
        merged=merged,
        dtype=dtype,
        limit=limit,
        batch_size=int(batch_size) if batch_size.isdecimal() else batch_size,
        num_fewshot=num_fewshot,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template,
        seed=seed,
        samples=samples,
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps({"version": 1, "comparison": [row.to_json() for row in run.rows]}))
        return
    rows = [row.texts() for row in run.rows]
    print_table("Task scores", list(rows[0]), [list(row.values()) for row in rows])
    for task in dict.fromkeys(task for scores in run.arms.values() for task in scores.truncated):
        typer.echo(f"{task}: some prompts are longer than the model's window and lost their beginning")
    typer.echo(f"written to {output}" + (f" and {samples_path(output)}" if samples else ""))
