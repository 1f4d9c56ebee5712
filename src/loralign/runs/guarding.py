"""What a guarded run needs besides its task: must-survive data, the subspace, the probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loralign.data import load_alignment_data, tokenise_completions
from loralign.data.completions import Completion
from loralign.errors import DataError
from loralign.guard import AlignmentSubspace, estimate_fisher
from loralign.models import LoadedModel

AUTO = "auto"
NONE = "none"


@dataclass(frozen=True)
class MustSurvive:
    """Prompts with responses that must survive: what the subspace is estimated on, and what drift is measured on."""

    alignment: Any
    probe: Any


def load_must_survive(alignment: list[str], probe: list[str]) -> MustSurvive:
    """Load both parts; they are the two splits of the same data unless the probe has data of its own.

    Raises:
        DataError: any fault of the data; no refusal (label ``unsafe``) to estimate from; alignment data without a
            validation split and no probe named.
    """
    train = load_alignment_data(alignment, split="train")
    check_refusals(train, alignment)
    return MustSurvive(train, load_probe(probe) if probe else load_alignment_data(alignment, split="validation"))


def check_refusals(rows: Any, sources: Sequence[str]) -> None:
    """Make sure that there is something to preserve.

    Raises:
        DataError: no row is labelled ``unsafe``.
    """
    if "unsafe" not in set(rows["label"]):
        raise DataError(
            "holds no refusals (no row with the label unsafe), so there is nothing to preserve",
            place=", ".join(sources),
            fix="add unsafe prompts with the refusals that must survive",
        )


def load_probe(sources: list[str]) -> Any:
    """Prompts with responses to measure drift on: the bundled validation split, or files that are the probe as a whole.

    Raises:
        DataError: any fault of the data.
    """
    return load_alignment_data(sources, split="validation" if sources == ["builtin"] else "all")


def balanced(dataset: Any, count: int) -> Any:
    """The first ``count`` rows, as many of every label and category as there are, in turn."""
    groups: dict[tuple[str, str], list[int]] = {}
    categories = dataset["category"] if "category" in dataset.column_names else [""] * len(dataset)
    for index, key in enumerate(zip(dataset["label"], categories, strict=True)):
        groups.setdefault(key, []).append(index)
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(count, len(dataset)):
        # Unsafe ones first: few samples should rather lack an over-refusal than a refusal.
        chosen += [rows[depth] for _, rows in sorted(groups.items(), reverse=True) if depth < len(rows)]
        depth += 1
    return dataset.select(chosen[:count])


def open_subspace(
    guard: str,
    loaded: LoadedModel,
    alignment: list[Completion],
    *,
    target_modules: list[str],
    directory: Path,
    reuse: bool,
    seed: int = 0,
    max_length: int | None = 256,
) -> AlignmentSubspace | None:
    """The subspace that a run is told to use: one from a file, one estimated now, or none.

    Args:
        guard: a directory of ``loralign fisher``, ``auto`` or ``none``.
        loaded: the model that is to be preserved.
        alignment: what ``auto`` estimates it on.
        target_modules: the modules that will carry LoRA.
        directory: where :func:`keep_subspace` puts what ``auto`` estimates.
        reuse: whether one that is there already is used.
        seed: of the estimate.
        max_length: of its samples, in tokens.

    Raises:
        StateError: the file is damaged or belongs to another model.
        DataError: too few samples.
    """
    if guard == NONE:
        return None
    if guard != AUTO:
        return AlignmentSubspace.load(guard, loaded.model)
    if reuse and directory.is_dir():
        return AlignmentSubspace.load(directory, loaded.model)
    return estimate_fisher(
        loaded.model,
        alignment,
        target_modules="all-linear" if target_modules == ["all-linear"] else target_modules,
        seed=seed,
        max_length=max_length or 256,
        checkpoint=directory.with_name(f"{directory.name}.partial"),
    )


def keep_subspace(subspace: AlignmentSubspace | None, guard: str, directory: Path) -> None:
    """Save what ``auto`` estimated, once, for a resumed run and for others."""
    if subspace is not None and guard == AUTO and not directory.is_dir():
        subspace.save(directory)


def tokenised(dataset: Any, loaded: LoadedModel, max_length: int | None) -> list[Completion]:
    """The rows as tokens of the model's tokenizer."""
    found: list[Completion] = tokenise_completions(dataset, loaded.tokenizer, max_length)
    return found


def describe_subspace(subspace: AlignmentSubspace) -> dict[str, Any]:
    """A subspace as plain values: where it comes from, and rank, energy and agreement of every layer."""
    layers = {
        name: {
            "rank": layer.rank,
            "energy": layer.energy,
            "top": float(layer.eigenvalues[0]) / subspace.scale if layer.rank and subspace.scale > 0 else 0.0,
            "half_agreement": layer.half_agreement,
        }
        for name, layer in subspace.layers.items()
    }
    return {**asdict(subspace.info), "scale": subspace.scale, "layers": layers}
