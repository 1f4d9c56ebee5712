from __future__ import annotations

import numpy as np
import pytest

from loralign.errors import ConfigError
from loralign.experiments.space import Choices, Range, grid_points
from loralign.experiments.space_syntax import parse_space


def test_lists_and_ranges_are_read_as_their_field_takes_them() -> None:
    texts = [
        "lambda_alignment=0.1:100:log",
        "lambda_stability = 0:1:3",
        "lora_r=4:16",
        "guard_projection=hard, soft",
        "probe_every=1:100:log:3",
        "drift_budget=1:2",
    ]
    assert parse_space("adapt", texts) == (
        Range("lambda_alignment", 0.1, 100.0, log=True),
        Range("lambda_stability", 0.0, 1.0, count=3),
        Range("lora_r", 4, 16, whole=True),
        Choices("guard_projection", ("hard", "soft")),
        Range("probe_every", 1, 100, whole=True, log=True, count=3),
        # A number with a fraction, however its ends are written.
        Range("drift_budget", 1.0, 2.0),
    )
    assert parse_space("align", ["beta=0.05,0.1"]) == (Choices("beta", ("0.05", "0.1")),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lambda_alignment", "is not FIELD=VALUES"),
        ("=1:2", "is not FIELD=VALUES"),
        ("lora_r=", "is not FIELD=VALUES"),
        ("lambda_alignmnet=1:2", "did you mean lambda_alignment"),
        ("beta=0.1,0.2", "beta is no field of loralign adapt"),
        ("lora_r=4", "4 is a single value"),
        ("guard_projection=hard,,soft", "empty value"),
        ("lora_r=4,8,4", "one twice"),
        ("guard_projection=hard:soft", "takes no numbers"),
        ("lora_r=4:many", "'many' is no number"),
        ("lambda_alignment=0:inf", "'inf' is no number"),
        ("lambda_alignment=nan:1", "'nan' is no number"),
        ("lora_r=4:8.5", "8.5 is no whole number"),
        ("lora_r=16:4", "16 is not below 4"),
        ("lora_r=4:4", "4 is not below 4"),
        ("lambda_alignment=0:1:log", "cannot start at 0"),
        ("lora_r=-1:8:log", "cannot start at -1"),
        ("lora_r=4:8:linear", "cannot read 'linear'"),
        ("lora_r=4:8:2:log", "cannot read '2:log'"),
        ("lora_r=4:8:log:2:2", "cannot read 'log:2:2'"),
        ("lora_r=4:8:1", "1 points do not hold both ends"),
        ("seed=1,2", "give --seeds"),
        ("output_dir=a,b", "give --output"),
    ],
)
def test_a_bad_form_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_space("adapt", [text])
    assert caught.value.place == f"--space {text}"


def test_a_space_has_fields_each_once() -> None:
    with pytest.raises(ConfigError, match="no field varies"):
        parse_space("adapt", [])
    with pytest.raises(ConfigError, match="lora_r stands there twice"):
        parse_space("adapt", ["lora_r=4,8", "lora_r=4:16"])


def test_a_grid_holds_every_combination_once_with_both_ends() -> None:
    space = parse_space("adapt", ["lambda_alignment=0.1:100:log:4", "guard_projection=hard,soft", "lora_r=4:7:3"])
    points = grid_points(space)
    assert len(points) == 4 * 2 * 3
    assert len({tuple(point.values()) for point in points}) == len(points)
    assert [point["lambda_alignment"] for point in points[::6]] == [0.1, 1.0, 10.0, 100.0]
    assert [point["lora_r"] for point in points[:3]] == [4, 6, 7]
    assert all(isinstance(point["lora_r"], int) for point in points)
    assert points[0] == {"lambda_alignment": 0.1, "guard_projection": "hard", "lora_r": 4}


def test_a_linear_range_is_even_and_whole_numbers_are_not_repeated() -> None:
    values = [float(one) for one in Range("x", 0.0, 1.0, count=5).listed().values]
    np.testing.assert_allclose(np.diff(values), 0.25)
    assert Range("x", 1, 3, whole=True, count=9).listed().values == (1, 2, 3)
    # To twelve digits, so that the last bits of a machine's powers make no other cells.
    assert Range("x", 0.1, 10.0, log=True, count=4).listed().values == (0.1, 0.464158883361, 2.15443469003, 10.0)
    with pytest.raises(ConfigError, match="x is a range without a number of points"):
        grid_points([Range("x", 0.0, 1.0)])
