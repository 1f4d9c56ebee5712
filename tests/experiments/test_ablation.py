from __future__ import annotations

import pytest

from loralign.errors import ConfigError
from loralign.experiments.ablation import align_arms, chosen, guard_arms
from loralign.experiments.cell import base_settings, make_cell
from loralign.training import GuardConfig


def test_the_ladder_adds_one_term_at_a_time() -> None:
    config = GuardConfig()
    arms = {arm.name: arm.overrides for arm in guard_arms(vars(config))}
    weights = [
        GuardConfig(**arms[name]).penalty_weights(1.0)
        for name in ("+ alignment", "+ stability", "+ overlap or full − geodesic", "full")
    ]
    assert weights[0].alignment == config.lambda_alignment
    assert (weights[0].stability, weights[0].collision) == (0, 0)
    assert weights[1].stability == config.lambda_stability
    assert weights[1].collision == 0
    overlap, full = (GuardConfig(**arms[name]) for name in ("+ overlap or full − geodesic", "full"))
    # The overlap keeps the weight that it has in the full method, and so does the geodesic term where it is alone.
    assert overlap.lambda_collision * overlap.collision_alpha == full.lambda_collision * full.collision_alpha
    assert overlap.collision_alpha == 1
    alone = GuardConfig(**arms["full − overlap"])
    assert alone.collision_alpha == 0
    assert alone.lambda_collision == pytest.approx(full.lambda_collision * (1 - full.collision_alpha))
    assert weights[3] == config.penalty_weights(1.0)
    assert arms["plain"] == {"guard": "none", "drift_budget": None}


@pytest.mark.parametrize(
    "weights", [{"lambda_alignment": 0}, {"lambda_stability": 0}, {"lambda_collision": 0}, {"collision_alpha": 1.0}]
)
def test_a_ladder_with_a_rung_missing_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="leaves a term of the full method out"):
        guard_arms({**vars(GuardConfig()), **weights})


def test_every_arm_is_a_recipe_and_no_two_are_the_same(adapting: list[str], model: object) -> None:
    base = base_settings("adapt", adapting)
    cells = [make_cell("adapt", base, arm.overrides, 0).fingerprint for arm in guard_arms(base)]
    assert len(set(cells)) == len(cells) == 9
    base = base_settings("align", ["--model", str(model)])
    cells = [make_cell("align", base, arm.overrides, 0).fingerprint for arm in align_arms(base)]
    assert len(set(cells)) == len(cells) == 20


def test_arms_are_chosen_by_name() -> None:
    arms = align_arms({"refine_every": 0, "max_steps": 60})
    assert [arm.name for arm in chosen(arms, ["norm", "upgrad", "norm"])] == ["norm", "upgrad"]
    assert chosen(arms, []) == arms
    assert {arm.overrides.get("refine_every") for arm in arms if "+" in arm.name} == {20}
    with pytest.raises(ConfigError, match="'norn' is no arm"):
        chosen(arms, ["norn"])


def test_the_full_method_without_one_of_its_collision_terms_is_chosen_by_either_name() -> None:
    arms = guard_arms(vars(GuardConfig()))
    for names in (["full - geodesic"], ["+ overlap"], ["full − geodesic", "+ overlap"]):
        assert [arm.name for arm in chosen(arms, names)] == ["+ overlap or full − geodesic"]
    assert [arm.name for arm in chosen(arms, ["full - overlap"])] == ["full − overlap"]


def test_arms_of_the_guard_have_no_budget_and_project_as_they_are_called(adapting: list[str]) -> None:
    base = base_settings("adapt", [*adapting, "--drift_budget", "0.3", "--guard_projection", "soft"])
    cells = {arm.name: make_cell("adapt", base, arm.overrides, 0).settings for arm in guard_arms(base)}
    assert {one["drift_budget"] for one in cells.values()} == {None}
    projections = {name: one["guard_projection"] for name, one in cells.items() if name != "plain"}
    assert projections == {name: "soft" if "soft" in name else "hard" for name in projections}


@pytest.mark.parametrize(
    ("words", "every"),
    [(["--max_steps", "60"], 20), (["--max_steps", "2"], 1), (["--max_steps", "60", "--refine_every", "7"], 7)],
)
def test_arms_are_refined_as_they_are_called(model: object, words: list[str], every: int) -> None:
    base = base_settings("align", ["--model", str(model), "--refine_at_start", "true", *words])
    for arm in align_arms(base):
        found = make_cell("align", base, arm.overrides, 0).settings
        refined = "+" in arm.name
        assert (found["refine_every"], found["refine_at_start"]) == ((every, True) if refined else (0, False)), arm.name


def test_a_run_counted_in_passes_is_refined_all_the_same() -> None:
    arms = align_arms({"refine_every": 0, "max_steps": -1})
    assert {arm.overrides["refine_every"] for arm in arms} == {0, 20}
