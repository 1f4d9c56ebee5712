"""Sentences, numbers and layer names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from loralign.report import diagnosis_sentences, explain_geometry, headline, load_run, summary_rows
from loralign.report.format import count, duration, listing, percent, significant, whole_percent
from loralign.report.layers import Place, place_layers
from loralign.report.records import Metric
from tests.report.conftest import LAYERS, about, write_lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (float("nan"), "n/a"),
        (0.0, "0"),
        (0.34, "0.340"),
        (0.9996, "1.00"),
        (-0.1, "−0.100"),
        (12345.0, "12300"),
        (0.0000123, "1.23e-05"),
        (99.96, "100"),
        (1.797e308, "1.80e+308"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_other_numbers() -> None:
    assert percent(0.6559) == "65.6\u00a0%"
    assert percent(None) == whole_percent(float("inf")) == count(None) == duration(None) == "n/a"
    assert [duration(value) for value in (41.7, 372.4, 11100)] == ["42 s", "6 min 12 s", "3 h 05 min"]
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(list("abcdef")) == "a, b, c, d and 2 more"


def test_reach_is_said_per_objective_with_advice() -> None:
    first = diagnosis_sentences({"harmless": 0.34, "helpful": 0.35})[0]
    assert "34\u00a0% of the harmless gradient and 35\u00a0% of the helpful one" in first
    # By energy 1 − γ², of which the average of both gammas leaves seven eighths.
    assert "88\u00a0% of the energy of every gradient is out of reach" in first
    assert "higher rank" in first
    assert "proves nothing" in diagnosis_sentences({"a": 0.95})[0]
    assert "of their energy 10\u00a0% is out of reach" in diagnosis_sentences({"a": 0.95})[0]
    assert "98\u00a0% of the energy of every gradient" in diagnosis_sentences({"a": 0.15})[0]
    assert "nothing can be said" in diagnosis_sentences({"a": None, "b": float("nan")})[0]


@pytest.mark.parametrize(
    ("variation", "told"), [(0.004, "nearly as asked"), (0.03, "slightly shifted"), (0.12, "clearly shifted")]
)
def test_the_tradeoff_is_named_by_its_size(variation: float, told: str) -> None:
    tradeoff = {
        "total_variation": variation,
        "intended": {"a": 0.5, "b": 0.5},
        "realised": {"a": 0.5 + variation, "b": 0.5 - variation},
    }
    sentence = diagnosis_sentences({"a": 0.5, "b": 0.4}, tradeoff=tradeoff)[1]
    assert told in sentence
    assert ("Geo weighting" in sentence) == (variation >= 0.05)
    if variation > 0.01:
        assert f"a gets {100 * (0.5 + variation):.1f}\u00a0% where 50.0\u00a0% was asked" in sentence


def test_conflicts_that_lora_makes_are_told_from_those_it_finds() -> None:
    def told(full: float, accessible: float) -> str:
        cosine = {"full": [[1, full], [full, 1]], "accessible": [[1, accessible], [accessible, 1]]}
        return " ".join(diagnosis_sentences({"a": 0.5, "b": 0.5}, cosine=cosine))

    assert "pull against each other (cosine −0.30)" in told(0.0, -0.3)
    assert "further apart" in told(0.0, -0.3)
    assert "closer together" in told(0.0, 0.3)
    assert "no two objectives conflict" in told(0.1, 0.12)
    assert "leaves the angles" in told(0.1, 0.12)
    assert "largely agree" in told(0.7, 0.7)


def test_a_single_objective_has_no_tradeoff_and_no_conflict() -> None:
    text = " ".join(diagnosis_sentences({"a": 0.5}, cosine={"full": [[1.0]]}, tradeoff={"total_variation": 0.0}))
    assert "trade-off" not in text
    assert "cosine" not in text


def test_layers_are_compared_by_kind_and_by_objective() -> None:
    layers = {
        "model.layers.0.q_proj": {"a": 0.2, "b": 0.2},
        "model.layers.1.q_proj": {"a": 0.2, "b": 0.3},
        "model.layers.0.v_proj": {"a": 0.6, "b": 0.6},
        "model.layers.1.v_proj": {"a": 0.6, "b": 0.6},
    }
    text = " ".join(diagnosis_sentences({"a": 0.4, "b": 0.4}, layer_attenuation=layers))
    assert "q_proj is reached least" in text
    assert "In 1 of 4 layers" in text


def test_the_story_of_a_run(run_directory: Path) -> None:
    text = " ".join(explain_geometry(load_run(run_directory)))
    for told in ("γ rose", "refinement at step 30 (balanced)", "pull against each other", "not from LoRA's rank"):
        assert told in text


def test_an_unmeasured_run_says_so(own_run: Path) -> None:
    (own_run / "geometry.jsonl").unlink()
    assert explain_geometry(load_run(own_run)) == [
        "The geometry was not measured in this run. Set measure_every to measure it."
    ]


def test_the_headline_counts_only_changes_beyond_their_intervals(run_directory: Path) -> None:
    run = load_run(run_directory)
    assert "honest 49\u00a0% → 71\u00a0%" in headline(run)
    assert "beyond the bootstrap intervals: 1 of 3" in headline(run)
    assert "0.0210 nats per token" in headline(run)
    difference = dataclasses.replace(
        run.scores["after"],
        objectives={name: {"accuracy_normalised": Metric(0.1, 0.02, 0.2)} for name in run.objectives},
    )
    paired = dataclasses.replace(run, scores={**run.scores, "difference": difference})
    assert "beyond the bootstrap intervals: 3 of 3" in headline(paired)


def test_the_headline_without_scores_claims_nothing(own_run: Path) -> None:
    (own_run / "scores.json").unlink()
    (own_run / "run.json").write_text(json.dumps(about() | {"status": "stopped"}), encoding="utf-8")
    assert "no scores before and after" in headline(load_run(own_run))
    assert "stopped before its end" in headline(load_run(own_run))
    (own_run / "run.json").write_text(json.dumps(about() | {"headline": "Mine."}), encoding="utf-8")
    assert headline(load_run(own_run)) == "Mine."


def test_summary_rows_hold_each_objective_and_all(run_directory: Path) -> None:
    rows = summary_rows(load_run(run_directory))
    assert [row.objective for row in rows] == ["helpful", "honest", "harmless", "all"]
    assert rows[1].settled
    assert not rows[0].settled
    assert rows[1].cells()[:3] == ("honest", "49.0\u00a0% [41.0, 57.0]", "71.0\u00a0% [63.0, 79.0]")
    assert rows[3].cells()[-1] == "n/a"


def test_flat_scores_are_read_too(own_run: Path) -> None:
    flat = {"objectives": {"honest": {"pairs": 5, "accuracy": {"value": 0.6}, "margin": 0.2}}}
    (own_run / "scores.json").write_text(json.dumps({"after": flat}), encoding="utf-8")
    row = summary_rows(load_run(own_run))[1]
    assert row.after == Metric(0.6)
    assert row.before is None


def test_layers_are_placed_by_kind_and_depth() -> None:
    places = place_layers(LAYERS)
    assert places[LAYERS[0]] == Place("q_proj", 0)
    assert {place.kind for place in places.values()} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert max(place.depth or 0 for place in places.values()) == 29


def test_kinds_that_share_a_last_name_stay_apart() -> None:
    names = ["encoder.layers.0.attn.q", "decoder.layers.0.attn.q", "decoder.layers.0.cross.q", "lm_head", "layers.²"]
    kinds = [place_layers(names)[name] for name in names]
    assert len({place.kind for place in kinds}) == 5
    assert kinds[3] == Place("lm_head", None)
    assert kinds[4].depth is None


def test_experts_are_taken_together() -> None:
    names = [f"model.layers.2.mlp.experts.{expert}.up_proj" for expert in range(8)]
    assert set(place_layers(names).values()) == {Place("up_proj", 2)}


def test_many_refinements_are_summed_up(own_run: Path) -> None:
    event = {
        "kind": "refinement",
        "attenuation_before": {"a": 0.3},
        "attenuation_after": {"a": 0.4},
        "function_change": 0.001,
    }
    records = [{"kind": "measurement", "step": 0, "attenuation": {"a": 0.3}}]
    write_lines(own_run / "geometry.jsonl", [*records, *({**event, "step": step} for step in range(1, 6))])
    assert "5 refinements changed mean γ by 0.100" in " ".join(explain_geometry(load_run(own_run)))
