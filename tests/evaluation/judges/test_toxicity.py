from __future__ import annotations

import os
import sys
import types

import pytest

from loralign.errors import ConfigError, ModelError
from loralign.evaluation.judges.toxicity import DetoxifyScorer, ProfanityScorer
from tests.evaluation.judges.conftest import FakeDetoxify

SAFE_LOADING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def test_profanity_is_told_from_politeness() -> None:
    rude, kind = ProfanityScorer().scores(["p", "p"], ["You are a damned idiot.", "Thank you, have a nice day."])
    assert rude > 0.9
    assert kind < 0.2


def test_the_prompt_plays_no_part() -> None:
    scorer = ProfanityScorer()
    assert scorer.scores(["You idiot!"], ["Good morning."]) == scorer.scores([""], ["Good morning."])


def test_detoxify_gives_its_toxicity_in_order(detoxify: type[FakeDetoxify]) -> None:
    scorer = DetoxifyScorer("unbiased", device="cpu")
    responses = ["x" * length for length in (500, 7000, 20, *range(100, 140))]
    assert scorer.scores(["p"] * len(responses), responses) == [len(response) / 10_000 for response in responses]
    (made,) = detoxify.made
    assert (made.model_type, made.device, scorer.name) == ("unbiased", "cpu", "detoxify:unbiased")
    assert max(map(len, made.batches)) <= 16


def test_a_long_response_is_cut_before_it_reaches_detoxify(detoxify: type[FakeDetoxify]) -> None:
    DetoxifyScorer().scores(["p"], ["x" * 10**6])
    assert len(detoxify.made[0].batches[0][0]) < 10_000


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_detoxify_loads_plain_weights_only(
    detoxify: type[FakeDetoxify], monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is None:
        monkeypatch.delenv(SAFE_LOADING, raising=False)
    else:
        monkeypatch.setenv(SAFE_LOADING, before)
    DetoxifyScorer()
    assert detoxify.made[0].weights_only == "1"
    assert os.environ.get(SAFE_LOADING) == before


def test_that_setting_makes_torch_refuse_code(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of plain weights rests on torch obeying the variable even where its caller asks for more."""
    import pickle
    from pathlib import Path

    import torch

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.getenv, ("HOME",))

    checkpoint = Path(str(tmp_path)) / "checkpoint.ckpt"
    torch.save({"config": Payload()}, checkpoint)
    monkeypatch.setenv(SAFE_LOADING, "1")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=False)
    torch.save({"config": {"arch": {"args": {"num_classes": 6}}}, "state_dict": {"w": torch.ones(2)}}, checkpoint)
    assert torch.load(checkpoint, weights_only=False)["state_dict"]["w"].tolist() == [1, 1]


def test_an_unknown_model_of_detoxify_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no model 'huge' \(use original, unbiased"):
        DetoxifyScorer("huge")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(ModelError, match=r"the package detoxify is needed and not installed \(pip install detoxify\)"):
        DetoxifyScorer()
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(ModelError, match=r"pip install alt-profanity-check"):
        ProfanityScorer()


def test_a_failed_download_is_one_line_and_restores_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(model_type: str, device: str) -> None:
        raise OSError("no route to host\nand more")

    module = types.ModuleType("detoxify")
    module.Detoxify = offline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detoxify", module)
    monkeypatch.delenv(SAFE_LOADING, raising=False)
    with pytest.raises(ModelError, match=r"^detoxify: cannot be loaded: no route to host \(check the connection"):
        DetoxifyScorer()
    assert SAFE_LOADING not in os.environ
