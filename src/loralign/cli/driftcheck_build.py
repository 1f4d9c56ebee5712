"""``loralign driftcheck build``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from loralign.cli.show import console, print_table

_DEFAULT_PARTS = "train=0.5,probe=0.1,test=0.4"


def build(
    output: Path = typer.Option(..., "--output", "-o", help="Where the set goes: a new directory."),
    source: list[str] = typer.Option(
        ["builtin"],
        "--source",
        help="builtin; mmlu, hh-rlhf, advbench or harmbench from the hub; a file or hub name; or KIND=PLACE, where the "
        "kind is one of these four, safe or unsafe; repeatable.",
    ),
    safe: int = typer.Option(5000, "--safe", min=0, help="Number of safe prompts."),
    unsafe: int = typer.Option(5000, "--unsafe", min=0, help="Number of unsafe prompts, of six categories."),
    seed: int = typer.Option(0, "--seed", min=0),
    parts: str = typer.Option(_DEFAULT_PARTS, "--parts", help="Share of each part; they add up to 1."),
) -> None:
    """Build a set of prompts for driftcheck, then print what was read, kept and dropped."""
    from loralign.data.driftcheck import build_driftcheck, load_build_report

    built = build_driftcheck(source, output, safe=safe, unsafe=unsafe, seed=seed, parts=parse_parts(parts))
    show_build(load_build_report(output))
    console.print(f"{len(built)} prompts, fingerprint {built.fingerprint[:12]}", markup=False)
    console.print(f"set {output}", markup=False, soft_wrap=True)


def parse_parts(text: str) -> dict[str, float]:
    """The shares that ``train=0.5,probe=0.1,test=0.4`` spells.

    Raises:
        ConfigError: it is not a list of names with numbers, or names a part twice.
    """
    from loralign.errors import ConfigError

    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = (piece.strip() for piece in item.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if math.isnan(share) or not name or name in shares:
            raise ConfigError(f"{item.strip()!r} is no share of a part", place="--parts", fix=f"write {_DEFAULT_PARTS}")
        shares[name] = share
    return shares


def show_build(report: Mapping[str, Any]) -> None:
    """Print the prompts of each source, with the reasons for those left out, and of each category and part."""
    reasons = list(dict.fromkeys(reason for one in report["sources"] for reason in one["dropped"]))
    print_table(
        "Sources",
        ("source", "read", "kept", *reasons),
        [
            (
                one["source"],
                str(one["read"]),
                str(one["kept"]),
                *(str(one["dropped"].get(reason, 0)) for reason in reasons),
            )
            for one in report["sources"]
        ],
    )
    parts = list(report["sizes"]["parts"])
    print_table(
        "Prompts",
        ("label and category", *parts, "all"),
        [
            (f"{label}: {category}", *(str(found.get(part, 0)) for part in parts), str(sum(found.values())))
            for label, categories in report["counts"].items()
            for category, found in categories.items()
        ],
    )
