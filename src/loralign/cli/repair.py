"""``loralign repair``."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from loralign.cli.choices import Dtype, Projection
from loralign.cli.show import console, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("repair", help="Mend an adapter that lost its base's alignment, without training.")(repair)


def repair(
    adapter: str = typer.Argument(help="A PEFT LoRA adapter's directory."),
    output: Path = typer.Option(..., "--output", "-o", help="Where the repaired adapter goes."),
    subspace: str = typer.Option(None, "--subspace", help="A directory of loralign fisher."),
    drift_budget: float = typer.Option(None, "--drift-budget", help="Drift that may remain, in nats per token."),
    strength: float = typer.Option(None, "--strength", help="Instead: share that is taken out, 0 to 1."),
    rank: int = typer.Option(None, "--rank", help="Leading directions of every layer that are used; all by default."),
    method: str = typer.Option("fisher", "--method", help="fisher, random, scale, safe_lora or intruder."),
    per_layer: bool = typer.Option(False, "--per-layer", help="A strength for every layer, by its Fisher energy."),
    by_rank: bool = typer.Option(
        False, "--by-rank", help="Take directions out whole, the leading ones; a budget is met with the fewest."
    ),
    projection: Projection = typer.Option("hard", "--projection", help="hard or soft."),
    partial: bool = typer.Option(False, "--partial", help="Accept a subspace that covers only some layers."),
    unaligned: str = typer.Option(None, "--unaligned", help="The base before its alignment, for safe_lora."),
    threshold: float = typer.Option(0.5, "--threshold", help="Similarity below which safe_lora projects a layer."),
    projected_layers: int = typer.Option(None, "--projected-layers", min=1, help="Or so many layers, for safe_lora."),
    top_k: int = typer.Option(10, "--top-k", min=1, help="Leading singular vectors that intruder looks at."),
    epsilon: float = typer.Option(0.5, "--epsilon", help="Cosine below which one of them is an intruder."),
    probe: list[str] = typer.Option(["builtin"], "--probe", help="Prompts with responses that must survive."),
    probe_samples: int = typer.Option(48, "--probe-samples", min=1, help="Samples of the probe."),
    probe_tokens: int = typer.Option(
        None, "--probe-tokens", min=0, help="Their first response tokens that count: 2 by default; 0 is all of them."
    ),
    task: list[str] = typer.Option([], "--task", help="Task data, to say what the repair costs."),
    task_samples: int = typer.Option(64, "--task-samples", min=1, help="Task samples scored."),
    judge: int = typer.Option(0, "--judge", min=0, help="Probe prompts answered and judged; 0 is off."),
    max_length: int = typer.Option(256, "--max-length", min=8, help="Longest sample in tokens."),
    model: str = typer.Option(None, "--model", help="The base; by default the one that the adapter names."),
    dtype: Dtype = typer.Option("auto", "--dtype", help="Base weights: auto, float32, bfloat16 or float16."),
    seed: int = typer.Option(0, "--seed"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Repair and print what changed."""
    from loralign.guard import PeerOptions
    from loralign.runs import RepairOptions, repair_adapter

    run = repair_adapter(
        adapter,
        output,
        RepairOptions(
            method=method,
            strength=strength,
            drift_budget=drift_budget,
            rank=rank,
            per_layer=per_layer,
            by_rank=by_rank,
            projection=projection,
            partial=partial,
            unaligned=unaligned,
            peers=PeerOptions(threshold, projected_layers, top_k, epsilon),
            seed=seed,
        ),
        subspace=subspace,
        probe_data=probe,
        probe_samples=probe_samples,
        task_data=task,
        task_samples=task_samples,
        judged_prompts=judge,
        max_length=max_length,
        model=model,
        dtype=dtype,
        **({} if probe_tokens is None else {"probe_tokens": probe_tokens}),
    )
    if as_json:
        typer.echo(json.dumps(run.to_json()))
        return
    show_repair(run.to_json())
    console.print(f"adapter  {output}", markup=False, soft_wrap=True)


def show_repair(run: dict[str, object]) -> None:
    """Print what a repair changed, and the strongest changes by layer."""
    from loralign.runs.repair_words import layer_rows, repair_rows, repair_sentence

    console.print()
    console.print(repair_sentence(run), markup=False)
    console.print()
    print_table("Before and after", ("", "base", "before", "after"), repair_rows(run))
    print_table("Layers most changed", ("layer", "strength", "share in the subspace", "taken out"), layer_rows(run))
