from __future__ import annotations

import json
from pathlib import Path

import pytest

from loralign.experiments.ablate import side_by_side
from loralign.experiments.early_stopping import STOPPED, Moment, course, stopped_at, stopped_table, stoppings
from loralign.experiments.experiment import Arm, ArmResult
from loralign.experiments.store import CellRecord
from tests.experiments.made_up import made_up

FALLING = [Moment(0, 3.0, 0.0), Moment(5, 2.0, 0.4), Moment(10, 2.2, 0.8), Moment(15, 1.0, 1.2)]


def logged(directory: Path, moments: list[Moment], seed: int = 0) -> CellRecord:
    """A cell whose log has these measurements, and some that are not of both."""
    records = [{"kind": "train", "step": 4, "loss": 9.0}, {"kind": "task", "step": 98, "loss": 0.0}]
    for one in moments:
        records += [{"kind": "probe", "step": int(one.step) - 1, "kl": one.drift}]
        records += [{"kind": "task", "step": int(one.step) - 1, "loss": one.loss}]
    (directory / "run").mkdir(parents=True)
    (directory / "run" / "guard.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return CellRecord("f" * 64, "adapt", "finished", {"seed": seed}, directory=directory)


def arm(directory: Path, name: str, *courses: list[Moment]) -> ArmResult:
    cells = tuple(logged(directory / name / str(seed), one, seed) for seed, one in enumerate(courses))
    return ArmResult(Arm(name), cells, made_up(name, {}, *({"drift": 0.1},) * len(cells)).outcomes)


def test_a_course_is_of_the_steps_at_which_both_were_measured(tmp_path: Path) -> None:
    assert course(logged(tmp_path / "whole", FALLING)) == FALLING
    (tmp_path / "empty").mkdir()
    assert course(CellRecord("f" * 64, "adapt", "finished", {"seed": 0}, directory=tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("loss", "moment"),
    [
        (3.5, (0.0, 0.0)),
        (2.5, (2.5, 0.2)),
        (2.0, (5.0, 0.4)),
        # It came down to this before it rose again.
        (2.1, (4.5, 0.36)),
        (1.6, (12.5, 1.0)),
        (0.9, None),
    ],
)
def test_a_run_is_stopped_when_it_first_comes_down_to_a_loss(loss: float, moment: tuple[float, float] | None) -> None:
    found = stopped_at(FALLING, loss)
    assert (None if found is None else (found.step, found.drift)) == (None if moment is None else pytest.approx(moment))
    assert stopped_at([], loss) is None


def test_an_arm_is_compared_with_plain_of_its_own_seed_stopped_at_its_loss(tmp_path: Path) -> None:
    faster = [Moment(0, 3.0, 0.0), Moment(5, 1.0, 1.0)]
    plain = arm(tmp_path, "plain", FALLING, faster)
    # Half of what plain had drifted by with each seed: 0.2 at a loss of 2.5, 0.5 at 2.
    held = arm(tmp_path, "full", [FALLING[0], Moment(15, 2.5, 0.1)], [FALLING[0], Moment(15, 2.0, 0.25)])
    found = stoppings([plain, held], "plain")
    (difference, reduction) = found[0].scores()
    assert (difference.measure, difference.reference, difference.seeds) == ("drift", STOPPED, 2)
    assert difference.value.value == pytest.approx((0.1 + 0.25) / 2 - (0.2 + 0.5) / 2)
    assert (difference.lowest, difference.highest) == pytest.approx((-0.25, -0.1))
    assert (reduction.measure, reduction.value.value) == ("drift_reduction", pytest.approx(0.5))
    table = stopped_table(found)
    assert table is not None
    assert table.rows == (("full", "2", "2.25", "2.5", "0.350", "0.175", "+0.500 [0.500, 0.500]"),)


def test_an_arm_that_learns_more_than_plain_is_said_to_and_one_that_learns_nothing_has_nothing_to_avoid(
    tmp_path: Path,
) -> None:
    plain = arm(tmp_path, "plain", FALLING)
    more = arm(tmp_path, "more", [FALLING[0], Moment(15, 0.5, 0.1)])
    nothing = arm(tmp_path, "nothing", [FALLING[0], Moment(15, 3.2, 0.1)])
    unwatched = made_up("unwatched", {}, {"drift": 0.1})
    found = stoppings([plain, more, nothing, unwatched], "plain")
    assert [(one.arm, one.missed, [score.measure for score in one.scores()]) for one in found] == [
        ("more", (0,), []),
        ("nothing", (), ["drift"]),
    ]
    page = side_by_side("ablate guard", "adapt", [plain, more, nothing, unwatched])
    tables = dict(page.page.tables)
    assert [row[0] for row in tables["Against plain stopped at the same task loss"].rows] == ["nothing"]
    assert any(note.startswith("more: with seed 0 plain LoRA never came down") for note in page.page.notes)
    assert page.columns["reference"].count(STOPPED) == 1
    alone = side_by_side("ablate guard", "adapt", [plain, more])
    assert "Against plain stopped at the same task loss" not in dict(alone.page.tables)
