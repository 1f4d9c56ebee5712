from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralign.errors import ConfigError, DataError, StateError
from loralign.evaluation.bootstrap import Estimate
from loralign.evaluation.parquet import write_columns
from loralign.experiments.experiment import Arm, ArmResult, ExperimentOptions
from loralign.experiments.finding import RESULTS
from loralign.experiments.forgetting_intervals import estimate_law
from loralign.experiments.language import read_language
from loralign.experiments.measurement import make_measurement
from loralign.experiments.scaling import (
    GUARDED,
    PLAIN,
    ScalingArm,
    ScalingCell,
    ScalingPlan,
    check_plan,
    fit_scaling,
    scaling_cell,
    warmup_steps,
)
from loralign.experiments.scaling_page import RATIO, scaling_finding
from loralign.experiments.store import LANGUAGE_FILE, CellRecord
from loralign.files import write_json
from loralign.report.forgetting import ForgettingCurve, forgetting_chart
from loralign.runs import parse_adapt_recipe
from tests.cli.conftest import assert_refused, loralign, with_template
from tests.experiments.made_up import records, samples
from tests.models.tiny_models import write_model

__all__ = ["loralign"]

RESAMPLES = 120
SIZES = {"small": 1_000_000, "large": 10_000_000}
RECIPE: dict[str, Any] = {"guard": "auto", "data": ["task.jsonl"], "model": "small"}
TEXT = "QWERTYUIOP,.;[]=-"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(write_model(tmp_path_factory.mktemp("model") / "wide", hidden=48))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of characters that the task, all letters, teaches the models not to expect."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": (TEXT * 8)[index : index + 80]}) + "\n" for index in range(6)))
    return path


def cells(
    *,
    guarded: float = 0.5,
    sizes: dict[str, int] = SIZES,
    passes: float = 0.5,
    sign: int = 1,
    wobble: float = 0.01,
    groups: tuple[str, ...] = (PLAIN, GUARDED),
    amounts: tuple[int, ...] = (10, 20, 40, 80),
    offset: float = 0.0,
) -> list[ScalingCell]:
    """Runs that forget ``0.01 √D`` for a million parameters and half of that for each four times as many."""
    found = []
    for model, size in sizes.items():
        for group in groups:
            for number, steps in enumerate(amounts):
                share = guarded if group == GUARDED else 1.0
                value = (
                    sign * share * 0.01 * (8 * steps) ** 0.5 * (size / 1e6) ** -0.5 * (1 + wobble * (-1) ** number)
                    + offset
                )
                known = (
                    Estimate(value, 0.9 * value, 1.1 * value) if sign > 0 else Estimate(value, 1.1 * value, 0.9 * value)
                )
                arm = ScalingArm(model, group, steps, {})
                found.append(
                    ScalingCell(arm, 0, size, 8 * steps, passes, 2.0, 2.0 + value, known, 1, 0, "of both models")
                )
    return found


def results(found: list[ScalingCell]) -> list[ArmResult]:
    return [ArmResult(Arm(cell.arm.name), records(0, 1), ({}, {})) for cell in found]


def test_the_ratio_of_a_is_that_of_the_runs(tmp_path: Path) -> None:
    found = cells()
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert set(fits.known) == {"shared", "plain", "guarded"}
    shared = fits.known["shared"].parameter(RATIO)
    assert shared.value == pytest.approx(0.5, rel=1e-3)
    assert shared.low <= 0.5 + 1e-6
    assert shared.high < 0.6
    finding = scaling_finding(results(found), found, fits)
    assert not any("samples itself" in note for note in finding.page.notes)
    own = scaling_finding(results(found), found, fits, own=True).page.notes
    assert any("samples itself, 96 tokens a sample" in note for note in own)
    assert "their A is 0.500 [" in finding.page.headline
    assert "nothing is settled" not in finding.page.headline
    (chart,) = finding.page.charts
    # A line and its runs for every model and arm.
    assert len(chart.figure.data) == 8
    assert any("slope through two points" in note for note in finding.page.notes)
    finding.write(tmp_path)
    columns = pq.read_table(tmp_path / RESULTS).to_pydict()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    runs = [row for row in rows if row["kind"] == "run"]
    assert [row["value"] for row in runs] == pytest.approx([cell.forgetting.value for cell in found])
    assert all(abs(row["fitted"] - row["value"]) < 0.05 * row["value"] for row in runs)
    (ratio,) = [row for row in rows if row["measure"] == RATIO]
    assert (ratio["kind"], ratio["arm"], ratio["value"], ratio["samples"]) == ("parameter", "shared", shared.value, 16)


def test_runs_of_one_seed_settle_nothing_and_three_of_them_have_no_interval() -> None:
    found = cells()
    one = [ArmResult(Arm(cell.arm.name), records(0), ({},)) for cell in found]
    page = scaling_finding(one, found, fit_scaling(found, resamples=RESAMPLES)).page
    assert page.headline.endswith("One seed, so nothing is settled.")
    # No other choice of three amounts tells all parameters, so that resamples would all be the runs themselves.
    three = [cell for cell in cells(sizes={"small": 10**6}, wobble=0.1) if cell.arm.steps < 80]
    fits = fit_scaling(three, resamples=2000)
    assert fits.known["shared"].resamples > 100
    assert math.isnan(fits.known["shared"].parameter(RATIO).low)
    assert "too few runs for an interval" in scaling_finding(results(three), three, fits).page.headline


def test_equal_arms_settle_nothing() -> None:
    found = cells(guarded=1.0)
    # Were all the same there would be nothing to be unsure of.
    moved = [replace(cell, after=cell.after + 0.01 * (-1) ** index * (index % 3)) for index, cell in enumerate(found)]
    assert (
        "nothing is settled"
        in scaling_finding(results(moved), moved, fit_scaling(moved, resamples=RESAMPLES)).page.headline
    )


def test_a_law_that_the_runs_do_not_determine_settles_nothing() -> None:
    # From nothing to much in one step is steeper than any exponent of the search.
    found = [replace(cell, after=cell.before + (1.0 if cell.arm.steps == 80 else 1e-6)) for cell in cells()]
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert fits.known["shared"].fit.bounded
    page = scaling_finding(results(found), found, fits).page
    assert "do not determine the law, so nothing is settled" in page.headline
    assert any(note.startswith("shared: an exponent") for note in page.notes)


def test_runs_that_forget_nothing_are_told_without_a_law() -> None:
    found = cells(sign=-1)
    finding = scaling_finding(results(found), found, fit_scaling(found, resamples=RESAMPLES))
    assert finding.page.headline.startswith("No law is fitted: no run has forgotten anything")
    assert finding.page.charts == []
    assert [title for title, _ in finding.page.tables] == ["Runs", "Arms"]
    assert not any("two points" in note for note in finding.page.notes)


def test_a_guard_that_forgets_nothing_leaves_the_law_of_the_plain_runs() -> None:
    plain = cells(groups=(PLAIN,))
    kept = [
        replace(
            cell, arm=replace(cell.arm, group=GUARDED), after=cell.before - 0.001, forgetting=Estimate(-0.001, -1, 1)
        )
        for cell in plain
    ]
    fits = fit_scaling([*plain, *kept], resamples=RESAMPLES)
    assert set(fits.reasons) == {"guarded"}
    assert fits.known["shared"].parameter(RATIO).value == pytest.approx(0, abs=0.02)
    notes = scaling_finding(results(plain), [*plain, *kept], fits).page.notes
    assert any(note.startswith("No law is fitted for guarded") for note in notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": {"small": SIZES["small"]}}, "With one size α cannot be fitted"),
        ({"passes": 1.5}, "Runs of 10, 20, 40, 80 steps went through their training data more than once"),
        ({"amounts": (10, 20)}, "With two amounts E cannot be told"),
    ],
)
def test_what_must_be_known_to_read_the_numbers_is_said(changes: dict[str, Any], words: str) -> None:
    found, plain = cells(**changes), cells()
    notes = scaling_finding(results(found), found, fit_scaling(found, resamples=RESAMPLES)).page.notes
    assert any(words in note for note in notes)
    assert not any(
        words in note
        for note in scaling_finding(results(plain), plain, fit_scaling(plain, resamples=RESAMPLES)).page.notes
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 3),
        (["--warmup_steps", "0"], 0),
        # A share of the steps, rounded up.
        (["--warmup_steps", "0.25"], 3),
        (["--warmup_steps", "0.05"], 1),
        (["--lr_scheduler_type", "constant"], 0),
        (["--lr_scheduler_type", "cosine"], 3),
    ],
)
def test_the_warm_up_is_what_the_schedule_makes_of_it(words: list[str], expected: int) -> None:
    training = parse_adapt_recipe(["--data", "task.jsonl", *words]).training
    assert warmup_steps(training, 10) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": None}, "Runs do not say how many processes they had: D_ft and passes are of one process"),
        ({"warmup": 3}, "from zero in 3 of the 10 steps of the shortest runs, but in 3 of 80 of the longest"),
        ({"tokenizer": None}, "Whether these models share a tokenizer is not known"),
    ],
)
def test_what_the_cells_say_of_their_runs_is_told(changes: dict[str, Any], words: str) -> None:
    found = cells()
    fits = fit_scaling(found, resamples=RESAMPLES)
    changed = [replace(cell, **changes) for cell in found]
    assert any(words in note for note in scaling_finding(results(found), changed, fits).page.notes)
    assert not any(words in note for note in scaling_finding(results(found), found, fits).page.notes)


def test_nats_of_other_tokens_are_not_compared_in_silence() -> None:
    def said(found: list[ScalingCell]) -> bool:
        notes = scaling_finding(results(found), found, fit_scaling(found, resamples=10)).page.notes
        return any("a token is not the same share of the text" in note for note in notes)

    one, two = cells(sizes={"small": SIZES["small"]}), cells()
    assert said([replace(cell, tokenizer=cell.arm.model) for cell in two])
    assert not said(two)
    # Of one model there is nothing to compare.
    assert not said([replace(cell, tokenizer=None) for cell in one])


def test_a_warm_up_that_is_the_same_share_of_all_runs_is_not_remarked() -> None:
    found = [replace(cell, warmup=3 * cell.arm.steps // 10) for cell in cells()]
    notes = scaling_finding(results(found), found, fit_scaling(found, resamples=10)).page.notes
    assert not any("rises from zero" in note for note in notes)


def test_with_e_the_headline_tells_what_is_forgotten_from_a() -> None:
    found = cells(guarded=0.2, offset=0.1, wobble=0.001)
    fits = fit_scaling(found, resamples=RESAMPLES)
    fit, headline = fits.known["shared"].fit, scaling_finding(results(found), found, fits).page.headline
    assert fit.offset == pytest.approx(0.1, rel=0.05)
    forgotten = (fit.amplitudes[GUARDED] + fit.offset) / (fit.amplitudes[PLAIN] + fit.offset)
    assert forgotten > 0.6
    assert headline.startswith(f"At the middle of the data guarded runs forget {forgotten:.3f} [")
    assert "and their A is 0.2" in headline
    assert "(β, α and E shared, R² 1.00)." in headline
    # Where E is taken as 0 both are one.
    two = cells(amounts=(10, 20))
    told = scaling_finding(results(two), two, fit_scaling(two, resamples=RESAMPLES)).page.headline
    assert told.startswith("Guarded runs forget 0.500 times what plain ones do (ratio of A, β and α shared")


def test_one_arm_without_an_interval_says_so() -> None:
    few = cells(groups=(PLAIN,), sizes={"small": 10**6}, amounts=(10, 20))
    found = [replace(cell, seed=seed, after=cell.after + 0.001 * seed) for cell in few for seed in (0, 1)]
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert math.isnan(fits.known[PLAIN].parameter("β").low)
    page = scaling_finding(results(found), found, fits).page
    assert page.headline.startswith("Forgetting grows with the data to the power β = ")
    assert page.headline.endswith(": too few runs for an interval, so nothing is settled.")
    assert not any("goes to the ends" in note for note in page.notes)


def test_plain_runs_that_forget_nothing_have_no_ratio_for_that_reason() -> None:
    guarded = cells(groups=(GUARDED,), guarded=1.0)
    kept = [
        replace(cell, arm=replace(cell.arm, group=PLAIN), after=cell.before - 0.001 * (1 + index % 3))
        for index, cell in enumerate(guarded)
    ]
    # The plain runs are what ratios are to, whichever comes first.
    fits = fit_scaling([*guarded, *kept], resamples=RESAMPLES)
    assert fits.known["shared"].parameter(RATIO).value == math.inf
    page = scaling_finding(results(guarded), [*guarded, *kept], fits).page
    assert page.headline.startswith("The A of plain runs is fitted as 0")
    assert "too few runs" not in page.headline
    (law,) = [table for title, table in page.tables if title == "Fitted law"]
    (text,) = [row[2] for row in law.rows if row[:2] == ("shared", RATIO)]
    assert text.startswith("∞ [")
    assert text.endswith("∞]")


def recorded(directory: Path, environment: dict[str, Any], rows: int = 100) -> ScalingCell:
    """A cell of 40 steps of 8 samples, read from what its run and its measurement left."""
    measure = make_measurement("language", {})
    settings = {"model": "small", "data": ["task.jsonl"], "seed": 3, "max_steps": 40, "guard": "none"}
    record = CellRecord("f" * 64, "adapt", "finished", settings, (measure,), directory=directory)
    write_json(record.run / "run.json", {"data": {"train": rows}, "environment": environment})
    (place,) = record.measured("language")
    place.mkdir(parents=True)
    write_columns(place / LANGUAGE_FILE, {"before": [1.0, 2.0], "after": [1.5, 2.5], "parameters": [9.0, 9.0]})
    return scaling_cell(ScalingArm("small", PLAIN, 40, {}), record, samples(0.5, 0.1))


def test_a_cell_counts_the_samples_of_all_processes(tmp_path: Path) -> None:
    one, four = (recorded(tmp_path / str(number), {"processes": number}) for number in (1, 4))
    assert (one.processes, one.amount, one.passes) == (1, 320, 3.2)
    assert (four.processes, four.amount, four.passes) == (4, 1280, 12.8)
    assert (one.size, one.before, one.after, one.warmup, one.seed) == (9, 1.5, 2.0, 3, 3)
    older = recorded(tmp_path / "older", {})
    assert (older.processes, older.amount, older.tokenizer) == (None, 320, None)
    with pytest.raises(StateError, match="cannot be read"):
        recorded(tmp_path / "empty", {"processes": 1}, rows=0)


def test_a_tokenizer_is_known_by_how_it_splits_text(tmp_path: Path, model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "same": {},
        "padded": {"padding": {"strategy": "BatchLongest"}, "added_tokens": []},
        "other": {"model": {**content["model"], "merges": content["model"]["merges"][:-1]}},
    }
    found = {}
    for name, changed in changes.items():
        write_json(tmp_path / name / "run" / "adapter" / "tokenizer.json", {**content, **changed})
        found[name] = recorded(tmp_path / name, {"processes": 1}).tokenizer
    assert found["same"] == found["padded"]
    assert None not in found.values()
    assert found["same"] != found["other"]


def test_the_task_under_another_name_is_no_other_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.jsonl").write_text('{"text": "learnt"}\n')
    Path("text.jsonl").write_text('{"text": "known"}\n')
    Path("link.jsonl").symlink_to("task.jsonl")
    Path("copy.jsonl").write_bytes(Path("task.jsonl").read_bytes())
    options = ExperimentOptions(tmp_path)
    for name in ("./task.jsonl", str(tmp_path / "task.jsonl"), "link.jsonl", "copy.jsonl", "tas*.jsonl", "*.jsonl"):
        with pytest.raises(ConfigError, match="is what is being learnt"):
            check_plan(RECIPE, options, ScalingPlan(("text.jsonl", name)))
    for name in ("text.jsonl", "tex*.jsonl", "no*.jsonl"):
        check_plan(RECIPE, options, ScalingPlan((name,)))


def test_plain_runs_alone_have_an_exponent() -> None:
    found = cells(groups=(PLAIN,))
    fits = fit_scaling(found, resamples=RESAMPLES)
    assert list(fits.known) == [PLAIN]
    assert fits.known[PLAIN].parameter("β").value == pytest.approx(0.5, abs=0.1)
    # Forgetting itself grows so only without E.
    assert "Forgetting, less E, grows" in scaling_finding(results(found), found, fits).page.headline
    assert "to the power β = " in scaling_finding(results(found), found, fits).page.headline


def test_nothing_finished_is_a_fault() -> None:
    failed = [ArmResult(Arm("plain, small, 10 steps"), (), (), {0: "out of memory"})]
    with pytest.raises(ConfigError, match="out of memory"):
        scaling_finding(failed, [], fit_scaling([]))


def test_the_chart_says_which_runs_logarithms_cannot_show() -> None:
    points = [(80.0, 0.1, 0.05, 0.15), (160.0, -0.01, -0.02, 0.01)]
    chart = forgetting_chart([ForgettingCurve("plain, <b>small</b>", 0, 0, points)])
    assert chart is not None
    assert "1 runs that forgot nothing are not drawn" in chart.note
    assert list(chart.figure.data[0].x) == [80.0]
    assert "<b>" not in chart.figure.data[0].name
    assert chart.table is not None
    assert len(chart.table.rows) == 2
    assert forgetting_chart([ForgettingCurve("plain", 0, 0, points[1:])]) is None


@pytest.mark.parametrize(
    ("recipe", "plan", "error", "words"),
    [
        ({}, {"text": ("task.jsonl",)}, ConfigError, "is what is being learnt"),
        ({"guard": "here", "model": None}, {"models": ("a", "b")}, ConfigError, "here is of one model"),
        ({}, {"amounts": (10,)}, DataError, "1 amount of data"),
        ({"model": None}, {"amounts": (10, 20), "models": ("a", "b")}, None, ""),
        ({}, {"models": ("a", "b")}, ConfigError, "small is the model, but not one of these"),
        ({}, {"models": ("small", "b")}, None, ""),
        ({"guard": "here"}, {}, None, ""),
        # The recipe's own warm-up is of three steps, the first of which is at rate zero.
        ({}, {"amounts": (4, 3, 8)}, ConfigError, "3 steps end within the warm-up of 3"),
        ({}, {"amounts": (4, 5, 6)}, None, ""),
        ({"warmup_steps": 0}, {"amounts": (1, 2, 3)}, None, ""),
        ({"lr_scheduler_type": "constant"}, {"amounts": (1, 2, 3)}, None, ""),
    ],
)
def test_a_plan_that_no_law_can_come_of_is_refused_before_anything_runs(
    recipe: dict[str, Any], plan: dict[str, Any], error: type[Exception] | None, words: str, tmp_path: Path
) -> None:
    made, base = ScalingPlan(**{"text": ("text.jsonl",), **plan}), {**RECIPE, **recipe}
    if error is None:
        check_plan(base, ExperimentOptions(tmp_path), made)
        return
    with pytest.raises(error, match=words):
        check_plan(base, ExperimentOptions(tmp_path), made)


def test_the_command_fits_the_law_to_two_models(
    loralign: Any,
    adapting: list[str],
    model: Path,
    wide: Path,
    text: Path,
    tmp_path: Path,
) -> None:
    result = loralign(
        *("scaling", *adapting, "--pretraining_data", text, "--models", model, wide, "--amounts", "2", "8"),
        *("--output", tmp_path / "out", "--judged_prompts", "0", "--samples", "0", "--learning_rate", "0.5"),
        *("--warmup_steps", "0", "--save_steps", "100", "--per_device_train_batch_size", "2"),
        *("--guard_mode", "project", "--probe_every", "0", "--reestimate_every", "0", "--dtype", "float32", "--json"),
    )
    assert result.code == 0, result.err
    told = json.loads(result.out.splitlines()[-1])
    assert "times what plain ones do" in told["headline"], told["headline"]
    columns = pq.read_table(told["results"]).to_pydict()
    runs = [index for index, kind in enumerate(columns["kind"]) if kind == "run"]
    # Steps times batch; both starts measured alike by all their runs.
    assert [columns["amount"][index] for index in runs] == [4, 16] * 4
    sizes, starts = ([columns[name][index] for index in runs] for name in ("size", "start"))
    assert len(set(sizes[:4])) == len(set(sizes[4:])) == 1
    assert (sizes[0], starts[0]) == pytest.approx(measured(model, text))
    assert (sizes[4], starts[4]) == pytest.approx(measured(wide, text))
    tables = sorted((tmp_path / "out" / "cells").glob("*/measures/*/language.parquet"))
    assert len(tables) == 8
    losses = read_language(tables[0])
    assert len(losses.before) == 6
    assert losses.before != losses.after
    assert "Forgetting against fine-tuning data" in Path(told["page"]).read_text()


def measured(model: Path, text: Path) -> tuple[float, float]:
    """Parameters, and the mean over lines of the loss per token, by transformers alone."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    losses = []
    for line in text.read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
        with torch.no_grad():
            losses.append(float(loaded(input_ids=ids, labels=ids).loss))
    return loaded.num_parameters(), sum(losses) / len(losses)


def test_faults_are_told_in_one_line(
    loralign: Any, adapting: list[str], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(loralign("scaling", *adapting), "--pretraining_data", "general text")
    beside = loralign("scaling", *adapting, "--pretraining_data", "own", text)
    assert_refused(beside, "--pretraining_data", "own stands beside other text")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert_refused(loralign("scaling", *adapting, "--pretraining_data", "own"), "write ./own for it")
    words = ("scaling", *adapting, "--pretraining_data")
    assert_refused(loralign(*words, text, "--amounts", "0", "5"), "--amounts")
    assert_refused(loralign(*words, "nowhere.jsonl"), "nowhere.jsonl")
    assert_refused(loralign(*words, text, "--models", "x", "x"), "--models", "once")
    assert_refused(loralign(*words, text, "--models", "x", "y"), "--models", "is the model, but not one of these")
    assert_refused(loralign(*words, text, "--pretraining_samples", "1"), "too few")


def test_resamples_keep_the_arms_of_a_seed_together() -> None:
    # Noise that both arms share cancels in their ratio, and would not if they were drawn apart.
    found = cells(wobble=0.3)
    runs = fit_scaling(found, resamples=RESAMPLES).known["shared"].runs
    together = estimate_law(runs, resamples=RESAMPLES).parameter(RATIO)
    apart = estimate_law([replace(run, unit=f"{run.unit} {run.group}") for run in runs], resamples=RESAMPLES).parameter(
        RATIO
    )
    assert together.high - together.low < 0.5 * (apart.high - apart.low)
