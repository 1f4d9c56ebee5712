"""``loralign stability``: whether another seed finds the same subspaces and leaves the same mark in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from loralign.errors import ConfigError
from loralign.experiments.agreement import (
    MID_TO_DEEP,
    Agreement,
    agreement_columns,
    depth_table,
    kind_table,
    seed_pairs,
    subspace_agreement,
    summarise,
    thirds,
    update_agreement,
)
from loralign.experiments.cell import CellSettings
from loralign.experiments.experiment import Arm, ArmResult, ExperimentOptions, run_arms, start_of
from loralign.experiments.facts import interval_note, run_facts
from loralign.experiments.finding import Finding, arm_scores, failure_notes, score_table
from loralign.experiments.outcomes import LEGEND
from loralign.experiments.subspaces import SubspaceSpec, estimated
from loralign.experiments.task_halves import HALVES, task_halves
from loralign.guard import AlignmentSubspace
from loralign.guard.layer_subspace import Projection
from loralign.models.adapter_factors import saved_factors
from loralign.report.depth import depth_chart
from loralign.report.experiment import ExperimentPage
from loralign.report.format import listing, significant, whole_percent
from loralign.runs.drawing import Draw
from loralign.runs.output import ADAPTER

THRESHOLD = 0.85
"""Of the source: the cosine that mid-to-deep layers are to agree to."""

_NOTES = (
    "Subspaces are compared by the root of the mean squared cosine of their principal angles, so that one threshold of "
    "a cosine serves them and ΔW_A; the guard's own warnings go by its square. A seed draws as many must-survive "
    "samples as the recipe uses, with replacement, from all there are, and the sketches; halves are of the recipe's "
    "own samples, split by each seed, and have none in common.",
    "ΔW_A is the part of an adapter's update in the recipe's own subspace, the same for all adapters. The training's "
    "seed decides LoRA's first A and the order of the data. Two random first A of r rows and n inputs share so little "
    "that one and the same gradient gives two first updates whose cosine is about r/n, so ΔW_A of two seeds is shown "
    "and drawn, and not judged by the threshold.",
    "Values are means over pairs; pairs gives the lowest and the highest of their means over layers. Chance "
    "is what independent random ones have: √(max(q, p)/m) of subspaces of ranks q and p among m outputs, the root of "
    "the average square, and 0 of updates.",
)
_HALVES_NOTE = (
    "ΔW_A of halves is of two adapters with the same seed, and so the same first A of LoRA, trained on the two halves "
    "of the task's training samples, which have none in common and are split once, by split_seed. A recipe with "
    "max_steps takes as many steps on a half as on the whole."
)
_UPDATE, _OF_HALVES = "ΔW_A, ", ", halves"


def stability(
    base: CellSettings, options: ExperimentOptions, *, threshold: float = THRESHOLD, halve_task: bool = False
) -> Finding:
    """Compare subspaces and the ΔW_A of adapters between seeds and halves of the data, layer by layer.

    Args:
        base: recipe of ``loralign adapt``, of :func:`~loralign.experiments.cell.base_settings`.
        options: at least two seeds; places; measures.
        threshold: that is drawn, and that mid-to-deep layers are judged by.
        halve_task: adapt on two disjoint halves of the task data as well, which makes three cells of one.

    Raises:
        ConfigError: fewer than two seeds, a threshold outside of 0 to 1.
        LoralignError: any fault of the recipe; too few samples for a subspace.
    """
    if len(options.seeds) < 2:
        raise ConfigError("one seed has nothing to agree with", place="--seeds", fix="give at least two, such as 0 1 2")
    if not 0 < threshold < 1:
        raise ConfigError(f"{threshold} is not between 0 and 1", place="--threshold", fix=f"use {THRESHOLD}")
    base = start_of(base, options.output)
    # How far estimates agree is what is asked here, so that it does not stop the work.
    spec = SubspaceSpec.of(base, min_agreement=0.0)
    found = subspace_agreements(spec, options.seeds, options.output)
    guard = base["guard"]
    if guard in ("auto", "none"):
        guard = str(estimated(SubspaceSpec.of(base), options.output))
    arms = stability_arms(guard, task_halves(base, options.output) if halve_task else {})
    results = run_arms("stability", "adapt", base, arms, options)
    subspace = AlignmentSubspace.load(guard)
    found += update_agreements(results, subspace, base["guard_projection"])
    return stability_finding(found, results, threshold)


def stability_arms(guard: str, halves: Mapping[str, CellSettings]) -> list[Arm]:
    """The recipe with its guard, and without; then the same on every half of the task."""
    whole = [Arm("guarded", {"guard": guard}), Arm("plain", {"guard": "none", "drift_budget": None})]
    return whole + [
        Arm(_of_half(arm.name, half), {**arm.overrides, **changes}) for arm in whole for half, changes in halves.items()
    ]


def subspace_agreements(spec: SubspaceSpec, seeds: Sequence[int], output: Path) -> list[Agreement]:
    """Subspaces of every two seeds, and of the two halves of the data that every seed splits.

    Raises:
        LoralignError: as the estimate.
    """

    def drawn(draw: Draw, seed: int) -> AlignmentSubspace:
        return AlignmentSubspace.load(estimated(replace(spec, draw=draw, seed=seed), output))

    seeded = {seed: drawn("bootstrap", seed) for seed in seeds}
    halves = {f"halves by {seed}": (drawn("half", seed), drawn("other half", seed)) for seed in seeds}
    return [subspace_agreement("subspace, seeds", seed_pairs(seeded)), subspace_agreement("subspace, halves", halves)]


def update_agreements(
    results: Sequence[ArmResult], subspace: AlignmentSubspace, projection: Projection
) -> list[Agreement]:
    """ΔW_A of every two seeds of an arm, then of the two halves of the task, seed by seed.

    Comparisons of arms that lack the adapters for them have no pairs.

    Args:
        results: of :func:`stability_arms`.
        subspace: on which all are projected.
        projection: of the recipe.

    Raises:
        AdapterError: an adapter cannot be read.
    """
    known = {one.arm.name: {cell.seed: saved_factors(cell.run / ADAPTER) for cell in one.cells} for one in results}
    pairs = {}
    for name in (name for name in known if not name.endswith(HALVES)):
        pairs[f"{_UPDATE}{name}"] = seed_pairs(known[name])
        halves = [known[arm] for arm in (_of_half(name, half) for half in HALVES) if arm in known]
        if halves:
            first, second = halves
            both = {f"halves with {seed}": (first[seed], second[seed]) for seed in first if seed in second}
            pairs[f"{_UPDATE}{name}{_OF_HALVES}"] = both
    return [update_agreement(name, both, subspace, projection) for name, both in pairs.items()]


def _of_half(arm: str, half: str) -> str:
    return f"{arm}, {half}"


def stability_finding(found: Sequence[Agreement], results: Sequence[ArmResult], threshold: float) -> Finding:
    """Comparisons by depth and by kind of layer, drawn along the depth, and whether mid-to-deep layers pass."""
    absent = [one.name for one in found if not one.layers()]
    found = [one for one in found if one.layers()]
    chart = depth_chart(
        {one.name: one.layers() for one in found},
        axis="cosine (subspaces: root mean square)",
        threshold=threshold,
        key="depth",
        title="Agreement along the depth",
        note="Subspaces: root of the mean squared cosine of the principal angles; ΔW_A: cosine. Means over pairs.",
    )
    tables = [
        ("Cosines by depth", depth_table(found, threshold)),
        ("Cosines by kind of layer", kind_table(found, threshold)),
    ]
    scores = arm_scores(results)
    if scores:
        tables.append(("What the adapters keep and gain", score_table(scores)))
    page = ExperimentPage(
        title="stability",
        headline=stability_headline(found, threshold),
        facts=run_facts(results),
        tables=tables,
        charts=[] if chart is None else [chart],
        notes=[
            *failure_notes(results),
            *(f"{name}: no two adapters to compare have a part in the subspace." for name in absent),
            *_NOTES,
            *([_HALVES_NOTE] if any(_of_updates(one) and one.name.endswith(_OF_HALVES) for one in found) else []),
            *([LEGEND, interval_note(results)] if scores else []),
        ],
    )
    return Finding(page, agreement_columns(found))


def stability_headline(found: Sequence[Agreement], threshold: float) -> str:
    """Which comparisons pass the threshold in the mean over mid-to-deep layers, where they can.

    Returns:
        A sentence with the mean and the share of layers above the threshold of each comparison.
    """
    told, passed, judged = [], [], 0
    for one in found:
        deep = [name for name, third in thirds(one.chance).items() if third in MID_TO_DEEP]
        summary = summarise(one, deep, threshold)
        if summary is not None:
            told.append(f"{one.name} {significant(summary.mean)} ({whole_percent(summary.above)} of layers above)")
            judged += _can_pass(one)
            passed += [one.name] if _can_pass(one) and summary.mean > threshold else []
    if not told:
        return "No comparison has layers in the middle or the deep third of the model."
    if not judged:
        verdict = "nothing that could pass is compared"
    elif len(passed) == judged:
        verdict = "all that could pass do" if judged < len(told) else "all pass"
    else:
        verdict = f"{listing(passed)} {'passes' if len(passed) == 1 else 'pass'}" if passed else "none passes"
    return f"Mid-to-deep layers against {significant(threshold, 2)}: {verdict}; {'; '.join(told)}."


def _can_pass(one: Agreement) -> bool:
    """Whether the threshold says anything of it: not of ΔW_A of two seeds, whose first A differ."""
    return not _of_updates(one) or one.name.endswith(_OF_HALVES)


def _of_updates(one: Agreement) -> bool:
    return one.name.startswith(_UPDATE)
