from __future__ import annotations

import math

import pytest
import torch

from loralign.experiments.agreement import (
    NO_DEPTH,
    Agreement,
    agreement_columns,
    depth_table,
    kind_table,
    seed_pairs,
    subspace_agreement,
    summarise,
    thirds,
)
from loralign.experiments.stability import THRESHOLD, stability_finding
from loralign.guard import AlignmentSubspace, LayerSubspace, SubspaceInfo

LAYERS = [f"model.layers.{depth}.{kind}_proj" for depth in range(7) for kind in ("q", "down")]


def agreeing(name: str, value: float, deep: float, *, spread: float = 0.0) -> Agreement:
    """Two pairs of seeds; ``deep`` in the last two thirds."""
    values = {layer: value if third == "early" else deep for layer, third in thirds(LAYERS).items()}
    pairs = {"0 and 1": values, "0 and 2": {layer: one + spread for layer, one in values.items()}}
    return Agreement(name, pairs, dict.fromkeys(LAYERS, 0.1))


def test_blocks_are_cut_into_thirds_from_the_first_to_the_last() -> None:
    found = thirds([*LAYERS, "lm_head"])
    assert found.pop("lm_head") == NO_DEPTH
    by_block = [found[f"model.layers.{depth}.q_proj"] for depth in range(7)]
    assert by_block == ["early"] * 3 + ["middle"] * 2 + ["deep"] * 2


def test_every_two_seeds_are_a_pair() -> None:
    assert seed_pairs({3: "a", 1: "b", 2: "c"}) == {"3 and 1": ("a", "b"), "3 and 2": ("a", "c"), "1 and 2": ("b", "c")}


def test_a_summary_counts_layers_by_their_mean_over_pairs() -> None:
    found = Agreement("x", {"a": {"one": 0.8, "two": 0.2}, "b": {"one": 1.0}}, {"one": 0.1, "two": 0.3})
    summary = summarise(found, ["one", "two"], 0.85)
    assert summary is not None
    assert (summary.layers, summary.mean, summary.above) == (2, pytest.approx(0.55), 0.5)
    # Each pair over the layers that it has.
    assert (summary.lowest, summary.highest, summary.chance) == (pytest.approx(0.5), 1.0, pytest.approx(0.2))
    assert summarise(found, ["three"], 0.85) is None


def test_tables_tell_depth_and_kind_apart() -> None:
    found = [agreeing("subspace, seeds", 0.5, 0.9, spread=0.02), agreeing("ΔW_A, plain", 0.1, 0.2)]
    table = depth_table(found, 0.85)
    assert [row[:3] for row in table.rows[:3]] == [
        ("subspace, seeds", "early", "6"),
        ("subspace, seeds", "middle", "4"),
        ("subspace, seeds", "deep", "4"),
    ]
    assert table.rows[2][3:] == ("0.910", "0.900 to 0.920", "100\u00a0%", "0.100")
    kinds = kind_table(found, 0.85)
    assert [row[0] for row in kinds.rows] == ["q_proj", "down_proj"]
    assert kinds.rows[0][1] == "0.739 (57\u00a0%)"


def test_the_headline_judges_mid_to_deep_layers_alone() -> None:
    passing, failing = agreeing("subspace, seeds", 0.1, 0.9), agreeing("ΔW_A, plain", 0.99, 0.2)
    both = stability_finding([passing, failing], [], 0.85)
    assert "all that could pass do; subspace, seeds 0.900 (100\u00a0% of layers above)" in both.page.headline
    assert "ΔW_A, plain 0.200 (0\u00a0% of layers above)" in both.page.headline
    # Adapters with different first A cannot reach it; those of halves of the data share theirs.
    assert "nothing that could pass is compared" in stability_finding([failing], [], 0.85).page.headline
    halves = agreeing("ΔW_A, plain, halves", 0.99, 0.2)
    assert "none passes" in stability_finding([halves], [], 0.85).page.headline
    assert "subspace, seeds passes;" in stability_finding([passing, halves, failing], [], 0.85).page.headline
    # Halves of the must-survive samples are no halves of the task.
    told = [stability_finding([one], [], 0.85).page.notes for one in (halves, agreeing("subspace, halves", 0.5, 0.5))]
    assert [any(note.startswith("ΔW_A of halves") for note in notes) for notes in told] == [True, False]
    assert "all pass" in stability_finding([passing], [], 0.85).page.headline


def test_the_chart_draws_the_threshold_and_a_trace_for_each_comparison() -> None:
    (chart,) = stability_finding(
        [agreeing("subspace, seeds", 0.1, 0.9), agreeing("ΔW_A, plain", 0, 0)], [], 0.7
    ).page.charts
    lines = [trace for trace in chart.figure.data if trace.mode == "lines"]
    assert [trace.name for trace in lines] == ["subspace, seeds", "ΔW_A, plain"]
    assert lines[0].y == (0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9)
    assert [shape.y0 for shape in chart.figure.layout.shapes] == [0.7]


def test_every_layer_and_pair_is_in_the_columns() -> None:
    columns = agreement_columns([agreeing("ΔW_A, plain", 0.1, 0.2)])
    assert {len(values) for values in columns.values()} == {2 * len(LAYERS)}
    last = {name: values[-1] for name, values in columns.items()}
    assert last == {
        **{"comparison": "ΔW_A, plain", "pair": "0 and 2", "layer": LAYERS[-1], "kind": "down_proj"},
        **{"block": 6, "third": "deep", "value": 0.2, "chance": 0.1},
    }


def turned(*angles: float) -> AlignmentSubspace:
    """A layer's subspace whose principal angles to that of no angles are these."""
    rows, rank = 8, len(angles)
    basis = torch.zeros(rows, rank)
    for index, angle in enumerate(angles):
        basis[index, index], basis[rank + index, index] = math.cos(angle), math.sin(angle)
    return AlignmentSubspace({LAYERS[0]: LayerSubspace(basis, torch.ones(rank), 10.0, 5)}, SubspaceInfo(model="tiny"))


def test_subspaces_agree_by_a_cosine_as_updates_do() -> None:
    # A subspace that is turned by one angle in all directions agrees to the cosine of that angle.
    angle = math.acos(0.86)
    found = subspace_agreement("subspace, seeds", {"0 and 1": (turned(0.0, 0.0), turned(angle, angle))})
    assert found.layers() == pytest.approx({LAYERS[0]: 0.86}, abs=1e-6)
    assert found.layers()[LAYERS[0]] > THRESHOLD
    assert found.chance == pytest.approx({LAYERS[0]: math.sqrt(2 / 8)})
    mixed = subspace_agreement("subspace, seeds", {"0 and 1": (turned(0.0, 0.0), turned(0.0, math.pi / 2))})
    assert mixed.layers() == pytest.approx({LAYERS[0]: math.sqrt(1 / 2)}, abs=1e-6)


def test_the_page_says_that_it_is_a_root() -> None:
    page = stability_finding([agreeing("subspace, seeds", 0.5, 0.9)], [], THRESHOLD).page
    (chart,) = page.charts
    assert "root mean square" in chart.figure.layout.yaxis.title.text
    assert "root of the mean squared cosine" in chart.note
    assert any("√(max(q, p)/m)" in note for note in page.notes)
