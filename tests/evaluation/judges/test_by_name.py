from __future__ import annotations

from pathlib import Path

import pytest

from loralign.errors import ConfigError, LoralignError, ModelError
from loralign.evaluation.judges import (
    AnyOf,
    ClassifierJudge,
    DetoxifyScorer,
    ProfanityScorer,
    RubricJudge,
    judge_by_name,
    toxicity_by_name,
)
from loralign.evaluation.refusal import PhraseJudge
from tests.evaluation.judges.conftest import FakeDetoxify
from tests.evaluation.judges.made import Scripted, write_classifier


def test_phrases() -> None:
    assert isinstance(judge_by_name("phrases"), PhraseJudge)


@pytest.mark.parametrize("by_name", [judge_by_name, toxicity_by_name])
def test_classifiers(classifiers: dict[str, Path], by_name: object) -> None:
    name = f"classifier:{classifiers['bert']}:refusal,other"
    judge = by_name(name, show_progress=False)  # type: ignore[operator]
    assert isinstance(judge, ClassifierJudge)
    expected = ClassifierJudge(classifiers["bert"], ["Refusal", "Other"], show_progress=False)
    assert judge.scores(["p"], ["I can't."]) == expected.scores(["p"], ["I can't."])


def test_a_directory_may_hold_a_colon(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "a:b")
    assert judge_by_name(f"classifier:{directory}:Refusal").name == f"classifier:{directory}:Refusal"


@pytest.mark.parametrize(
    ("rest", "url", "model"),
    [
        ("http://localhost:8000/v1:tiny", "http://localhost:8000/v1", "tiny"),
        ("http://localhost:8000:owner/name", "http://localhost:8000", "owner/name"),
        ("https://api.example.org/v1:llama3:8b", "https://api.example.org/v1", "llama3:8b"),
        ("http://localhost:11434/v1:llama3:8b", "http://localhost:11434/v1", "llama3:8b"),
        ("https://example.org:llama3:8b", "https://example.org", "llama3:8b"),
        ("http://[::1]:8000/v1:tiny", "http://[::1]:8000/v1", "tiny"),
        ("http://host:8000:7", "http://host:8000", "7"),
    ],
)
def test_servers(rest: str, url: str, model: str) -> None:
    asked: list[tuple[str, str]] = []

    def server(*address: str) -> Scripted:
        asked.append((address[0], address[1]))
        return Scripted("yes")

    judge = judge_by_name(f"server:{rest}", budget=1, server=server)
    assert isinstance(judge, RubricJudge)
    assert judge.name == f"server:{rest}"
    assert asked == [(url, model)]
    assert judge.scores(["p"], ["r"]) == [1.0]
    with pytest.raises(LoralignError, match="budget of 1"):
        judge.scores(["p"], ["another"])


def test_an_unreachable_server_is_one_line() -> None:
    judge = judge_by_name("server:http://127.0.0.1:9/v1:tiny", api_key_variable=None, show_progress=False)
    assert isinstance(judge, RubricJudge)
    judge._ask.retries = 0  # type: ignore[union-attr]
    with pytest.raises(LoralignError) as caught:
        judge.scores(["p"], ["r"])
    assert "127.0.0.1:9" in str(caught.value)
    assert caught.value.scores == (None,)  # type: ignore[attr-defined]


def test_phrases_and_another() -> None:
    judge = judge_by_name("phrases+server:http://localhost:1/v1:tiny", server=lambda url, model: Scripted("0.7"))
    assert isinstance(judge, AnyOf)
    assert judge.name == "phrases+server:http://localhost:1/v1:tiny"
    assert judge.scores(["p", "p"], ["I can't help with that.", "Sure."]) == [1.0, 0.7]


def test_toxicity(detoxify: type[FakeDetoxify]) -> None:
    assert isinstance(toxicity_by_name("profanity"), ProfanityScorer)
    assert isinstance(toxicity_by_name("detoxify"), DetoxifyScorer)
    assert toxicity_by_name("detoxify:multilingual").name == "detoxify:multilingual"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is unknown.*use one of phrases, classifier:DIR:LABEL"),
        ("phrase", "'phrase' is unknown"),
        ("phrases+", "'' is unknown"),
        ("phrases+phrases", "two or more different judges"),
        ("profanity", "'profanity' is unknown"),
        ("classifier", "does not name a model and a label"),
        ("classifier:some_directory", "does not name a model and a label"),
        ("classifier:owner/name:", "does not name a model and a label"),
        ("classifier:owner/name: , ", "does not name a model and a label"),
        ("server:", "does not name a server and a model"),
        ("server:http://localhost:8000", "does not name a server and a model"),
        ("server:http://localhost:8000/v1", "does not name a server and a model"),
        ("server:http://localhost:8000/v1:", "does not name a server and a model"),
        ("server:localhost:8000:tiny", "does not name a server and a model"),
    ],
)
def test_names_that_mean_no_judge(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judge_by_name(name, server=lambda url, model: Scripted("yes"))


@pytest.mark.parametrize("name", ["", "phrases", "toxic", "server:http://localhost:8000/v1:tiny"])
def test_names_that_mean_no_scorer(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is unknown.*use one of profanity, detoxify"):
        toxicity_by_name(name)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model named"):
        judge_by_name(f"classifier:{tmp_path / 'nowhere'}:toxic")


def test_the_bundled_language_model_is_no_classifier() -> None:
    with pytest.raises(ModelError, match=r"not a text classifier|is not installed"):
        judge_by_name("classifier:smollm2-135m-instruct:toxic")
