from __future__ import annotations

import pytest

from loralign.errors import ConfigError
from loralign.experiments.cell import base_settings, make_cell
from loralign.experiments.factors import Factors, Setting, own_setting, settings, settings_with

OWN = Setting(None, 64, 96, "hard")


def test_one_factor_at_a_time_is_varied_around_the_recipe() -> None:
    found = settings(Factors(), OWN)
    # Five ranks, two sketches, three sample counts and one projection differ from the recipe.
    assert [one.name for one in found] == [
        *("recipe", "rank 8", "rank 16", "rank 32", "rank 64", "rank 128", "sketch 32", "sketch 128"),
        *("samples 24", "samples 48", "samples 192", "projection soft"),
    ]
    assert all(len(one.varied) <= 1 for one in found)


def test_the_full_grid_has_every_combination_once() -> None:
    found = settings(Factors(), OWN, full_grid=True)
    assert len({one.name for one in found}) == len(found) == 5 * 3 * 4 * 2
    assert found[0].name == "rank 8, sketch 32, samples 24, projection hard"
    few = settings(Factors(rank=(16, 8), sketch=(), samples=(24,), projection=()), OWN, full_grid=True)
    assert few == [Setting(rank=8, samples=24), Setting(rank=16, samples=24)]


def test_a_value_is_told_by_the_setting_that_differs_in_nothing_else() -> None:
    found = settings(Factors(), OWN)
    assert settings_with(found, OWN, "rank", 16) == [Setting(rank=16)]
    # The recipe's own value is the recipe.
    for factor, value in (("samples", 96), ("sketch", 64), ("projection", "hard")):
        assert settings_with(found, OWN, factor, value) == [Setting()]
    assert settings_with(found, OWN, "rank", 7) == []
    # No columns beyond the rank are a value too.
    assert settings_with(settings(Factors(sketch=(0,)), OWN), OWN, "sketch", 0) == [Setting(sketch=0)]


def test_a_value_of_the_full_grid_is_told_by_all_that_have_it() -> None:
    found = settings(Factors(), OWN, full_grid=True)
    soft = settings_with(found, OWN, "projection", "soft")
    assert len(soft) == 5 * 3 * 4
    assert {one.projection for one in soft} == {"soft"}


def test_the_recipes_own_values_are_those_of_its_command(adapting: list[str]) -> None:
    base = base_settings("adapt", [*adapting, "--guard_projection", "soft"])
    assert own_setting(base) == Setting(None, 64, 12, "soft")
    assert make_cell("adapt", base, {"guard_projection": "soft"}, 0) == make_cell("adapt", base, {}, 0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": (0,)}, "--ranks: 0 is too small"),
        ({"sketch": (-1,)}, "--sketches: -1 is too small"),
        ({"samples": (1,)}, "--fisher_sample_counts: 1 is too small"),
        ({"projection": ("firm",)}, "--projections: 'firm' is unknown"),
        ({"rank": (8, 8)}, "repeat a value"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Factors(**values)
