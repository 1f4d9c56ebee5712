from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset

from loralign.experiments.subspaces import SubspaceSpec, estimated, truncated
from loralign.guard import AlignmentSubspace
from loralign.runs.drawing import draw_samples
from loralign.runs.guarding import balanced

ROWS = Dataset.from_list(
    [
        {"prompt": str(index), "label": "unsafe" if index % 2 else "safe", "category": "ab"[index % 3 == 0]}
        for index in range(50)
    ]
)


def mix(rows: Dataset) -> Counter[tuple[str, str]]:
    return Counter(zip(rows["label"], rows["category"], strict=True))


def test_halves_are_disjoint_make_up_the_whole_and_have_its_mix() -> None:
    whole = balanced(ROWS, 24)
    first, second = (draw_samples(ROWS, 24, draw, 3) for draw in ("half", "other half"))
    assert sorted([*first["prompt"], *second["prompt"]]) == sorted(whole["prompt"])
    assert len(first) == len(second) == 12
    assert all(abs(mix(first)[key] - mix(second)[key]) <= 1 for key in mix(whole))
    assert set(draw_samples(ROWS, 24, "half", 4)["prompt"]) != set(first["prompt"])


def test_a_bootstrap_draws_from_all_rows_with_the_mix_of_the_first_ones() -> None:
    drawn = [draw_samples(ROWS, 24, "bootstrap", seed) for seed in range(20)]
    assert all(mix(one) == mix(balanced(ROWS, 24)) for one in drawn)
    assert any(len(set(one["prompt"])) < 24 for one in drawn)
    assert {prompt for one in drawn for prompt in one["prompt"]} > set(balanced(ROWS, 24)["prompt"])
    assert draw_samples(ROWS, 24, "bootstrap", 1)["prompt"] == drawn[1]["prompt"] != drawn[2]["prompt"]


def test_the_seed_says_nothing_of_the_first_ones() -> None:
    assert draw_samples(ROWS, 10, "first", 1)["prompt"] == draw_samples(ROWS, 10, "first", 2)["prompt"]


def test_choices_left_to_the_estimate_do_not_rename_a_subspace() -> None:
    assert set(SubspaceSpec().values()) == {
        *("model", "data", "samples", "response_tokens", "rank", "method", "oversampling", "max_length"),
        *("target_modules", "seed"),
    }
    assert SubspaceSpec(draw="half", energy=1.0).values().items() >= {"draw": "half", "energy": 1.0}.items()


def test_the_model_is_loaded_as_the_recipe_loads_it() -> None:
    base = {"model": "org/name", "alignment_data": ["builtin"], "fisher_samples": 96, "fisher_tokens": 2}
    base |= {"max_length": 256, "lora_target_modules": ["all-linear"]}
    usual = {"revision": None, "dtype": "auto", "load_in_4bit": False}
    assert SubspaceSpec.of({**base, **usual}).values() == SubspaceSpec("org/name").values()
    chosen = {"revision": "v2", "dtype": "bfloat16", "load_in_4bit": True}
    assert SubspaceSpec.of({**base, **chosen}).values().items() >= chosen.items()


def test_a_subspace_is_of_the_weights_in_the_chosen_type(model: Path, kept: Path, tmp_path: Path) -> None:
    whole = SubspaceSpec(str(model), (str(kept),), 4, rank=2, target_modules=("q_proj",), min_agreement=0.0)
    places = [estimated(one, tmp_path) for one in (replace(whole, dtype="float32"), replace(whole, dtype="bfloat16"))]
    first, second = (AlignmentSubspace.load(place).layers["model.layers.0.self_attn.q_proj"].basis for place in places)
    assert not torch.equal(first, second)


def test_subspaces_are_estimated_once_and_ranks_are_nested_and_capped(model: Path, kept: Path, tmp_path: Path) -> None:
    common = {"model": str(model), "data": (str(kept),), "samples": 12, "target_modules": ("q_proj", "down_proj")}
    widest = SubspaceSpec(**common, min_agreement=0.0, energy=1.0, min_rank=1, max_rank=64)
    place = estimated(widest, tmp_path)
    changed = (place / "subspace.json").stat().st_mtime_ns
    assert estimated(widest, tmp_path) == place
    assert (place / "subspace.json").stat().st_mtime_ns == changed
    largest = AlignmentSubspace.load(place)
    # No layer has 64 outputs, and the last one has gradients at the 24 response tokens alone, some of them alike.
    assert [layer.rank <= layer.rows < 64 for layer in largest.layers.values()] == [True] * 4
    assert largest.layers["model.layers.1.mlp.down_proj"].rank <= 24
    four, three = (AlignmentSubspace.load(truncated(place, rank)) for rank in (4, 3))
    alone = AlignmentSubspace.load(estimated(SubspaceSpec(**common, min_agreement=0.0, rank=4), tmp_path))
    for name, layer in four.layers.items():
        assert (layer.rank, three.layers[name].rank) == (4, 3)
        torch.testing.assert_close(layer.basis, alone.layers[name].basis, atol=1e-4, rtol=0)
        torch.testing.assert_close(layer.basis[:, :3], three.layers[name].basis)
    assert truncated(place, 40) == truncated(place, 128)
    halves = [
        AlignmentSubspace.load(estimated(SubspaceSpec(**common, min_agreement=0.0, rank=2, draw=draw), tmp_path))
        for draw in ("half", "other half")
    ]
    assert [half.info.samples for half in halves] == [6, 6]
    assert max(halves[0].similarity(halves[1]).values()) < 0.999
