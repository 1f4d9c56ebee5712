from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import assert_refused
from tests.cli.guarding import QUICK, write_alignment, write_task

ASK = ("--prompts", "24", "--part", "all", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from loralign.data.driftcheck import build_driftcheck

    directory = tmp_path_factory.mktemp("set") / "built"
    build_driftcheck(["builtin"], directory, safe=60, unsafe=60, seed=0)
    return directory


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    from loralign.runs import parse_adapt_recipe, run_adaptation

    directory = tmp_path_factory.mktemp("adapter")
    task, kept = write_task(directory / "task.jsonl"), write_alignment(directory / "kept.jsonl")
    words = [model, "--data", task, "--alignment_data", kept, "--guard", "none", "--output_dir", directory / "out"]
    run_adaptation(parse_adapt_recipe([str(word) for word in (*words, *QUICK)]))
    return directory / "out/adapter"


def table(directory: Path) -> list[dict[str, Any]]:
    return pq.read_table(directory / "responses.parquet").to_pylist()


def test_generate_mode_keeps_every_answer_and_compares_with_the_baseline(
    loralign: Any, model: Path, adapter: Path, prompts: Path, tmp_path: Path
) -> None:
    result = loralign("driftcheck", "run", adapter, "--set", prompts, "-o", "a", "--baseline", model, *ASK, "--json")
    assert result.code == 0, result.err
    scores = json.loads(result.out.strip().splitlines()[-1])
    rows = table(tmp_path / "a")
    assert len(rows) == 24
    assert {(row["label"], row["category"]) for row in rows} >= {("unsafe", "violence"), ("unsafe", "privacy")}
    unsafe = [row["refused"] >= 0.5 for row in rows if row["label"] == "unsafe"]
    assert scores["refusal"]["value"] == pytest.approx(sum(unsafe) / len(unsafe))
    toxic = {row["id"]: row["toxicity"] for row in rows}
    before = {row["id"]: row["toxicity"] for row in table(tmp_path / "a/baseline")}
    assert before.keys() == toxic.keys()
    lost = sum(toxic[name] - before[name] for name in toxic) / len(toxic)
    assert scores["drift"]["toxicity"]["value"] == pytest.approx(lost, abs=1e-12)
    assert not (tmp_path / "a/answers.jsonl").exists()
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["kind"] == "driftcheck"
    assert record["baseline"] == str(model)


def test_a_finished_run_serves_as_baseline_and_as_measure(
    loralign: Any, model: Path, adapter: Path, prompts: Path, tmp_path: Path
) -> None:
    ask = ("--set", prompts, *ASK)
    assert loralign("driftcheck", "run", model, *ask, "-o", "start").code == 0
    assert loralign("driftcheck", "run", adapter, *ask, "-o", "plain", "--baseline", "start").code == 0
    result = loralign(
        "driftcheck", "run", model, *ask, "-o", "same", "--baseline", "start", "--against", "plain", "--json"
    )
    assert result.code == 0, result.err
    scores = json.loads(result.out.strip().splitlines()[-1])
    assert scores["drift"]["toxicity"]["value"] == 0
    assert set(scores["drift_reduction"]) == {"refusal", "over_refusal", "toxicity"}
    words = ("--set", prompts, "-o", "other", "--baseline", "start", "--part", "all")
    assert_refused(
        loralign("driftcheck", "run", model, *words), "prompts was 24 there and is 120 here", "run both alike"
    )


def test_score_mode_needs_no_answers_and_measures_divergence(
    loralign: Any, model: Path, adapter: Path, prompts: Path, tmp_path: Path
) -> None:
    ask = ("--set", prompts, *ASK, "--mode", "score", "--dtype", "float32")
    result = loralign("driftcheck", "run", adapter, *ask, "-o", "a", "--baseline", model)
    assert result.code == 0, result.err
    scores = json.loads((tmp_path / "a/scores.json").read_text())
    rows = table(tmp_path / "a")
    assert scores["kl"]["value"] == pytest.approx(sum(row["kl"] for row in rows) / len(rows))
    assert scores["kl"]["value"] > 0
    for row in rows:
        assert row["refusal_margin"] == pytest.approx(row["refusal_logprob"] - row["compliance_logprob"])
        assert row["refused"] == pytest.approx(1 / (1 + math.exp(-row["refusal_margin"])))
    assert scores["toxicity"] is None


def test_an_interrupted_run_goes_on(
    loralign: Any, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loralign.evaluation import response_store

    whole = loralign("driftcheck", "run", model, "--set", prompts, *ASK, "-o", "whole", "--batch-tokens", "256")
    assert whole.code == 0, whole.err
    keep = response_store.ResponseStore.keep

    def stop(store: Any, index: int, answer: str) -> None:
        if len(store) == 9:
            raise KeyboardInterrupt
        keep(store, index, answer)

    words = ("driftcheck", "run", model, "--set", prompts, *ASK, "-o", "cut", "--batch-tokens", "256")
    with monkeypatch.context() as patched:
        patched.setattr(response_store.ResponseStore, "keep", stop)
        assert loralign(*words).code == 130
    assert len((tmp_path / "cut/answers.jsonl").read_text().splitlines()) == 10
    assert not (tmp_path / "cut/scores.json").exists()
    other = loralign(*words[:-1], "256", "--max-new-tokens", "7")
    assert_refused(other, "answers.jsonl")
    assert loralign(*words).code == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert_refused(loralign(*words), "cut", "holds a finished run")


def test_an_interrupted_scoring_goes_on_with_the_same_groups(
    loralign: Any, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups made of what is left would pad otherwise and score a little differently."""
    from loralign.evaluation import response_store
    from loralign.runs import driftcheck

    monkeypatch.setattr(driftcheck, "_SCORED_TOGETHER", 7)
    scored: list[int] = []
    measure = driftcheck.score_prompts
    monkeypatch.setattr(driftcheck, "score_prompts", lambda *a, **k: scored.append(len(a[2])) or measure(*a, **k))
    words = ("driftcheck", "run", model, "--set", prompts, *ASK, "--mode", "score", "--dtype", "float32")
    assert loralign(*words, "-o", "whole").code == 0
    groups = len(scored)
    keep = response_store.ResponseStore.keep

    def stop(store: Any, index: int, answer: str) -> None:
        if len(store) == 9:
            raise KeyboardInterrupt
        keep(store, index, answer)

    with monkeypatch.context() as patched:
        patched.setattr(response_store.ResponseStore, "keep", stop)
        assert loralign(*words, "-o", "cut").code == 130
    scored.clear()
    assert_refused(loralign(*words, "-o", "cut", "--batch-tokens", "512"), "openings.jsonl")
    assert scored == []
    assert loralign(*words, "-o", "cut").code == 0
    assert len(scored) == groups - 1
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert not (tmp_path / "cut/openings.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--mode", "guess"), ("guess", "'generate', 'score'")),
        (("--part", "most"), ("most", "train, probe, test, all")),
        (("--judge", "oracle"), ("oracle",)),
        (("--toxicity", "nose"), ("nose",)),
        (("--against", "nothing"), ("--baseline",)),
        (("--server", "http://127.0.0.1:9", "--mode", "score"), ("no log-probabilities",)),
        (("--server", "http://127.0.0.1:9", "--retries", "0"), ("127.0.0.1",)),
        (("--baseline", "nowhere"), ("nowhere",)),
    ],
)
def test_faults(loralign: Any, model: Path, prompts: Path, tmp_path: Path, words: Any, told: Any) -> None:
    result = loralign("driftcheck", "run", model, "--set", prompts, "-o", "out", *ASK, *words)
    assert_refused(result, *told)
    assert not (tmp_path / "out/scores.json").exists()
    assert not (tmp_path / "out/responses.parquet").exists()


def test_an_altered_set_is_refused(loralign: Any, model: Path, prompts: Path, tmp_path: Path) -> None:
    shutil.copytree(prompts, tmp_path / "altered")
    file = tmp_path / "altered/prompts.jsonl"
    file.write_text(file.read_text().replace("violence", "hate", 1))
    assert_refused(loralign("driftcheck", "run", model, "--set", "altered", "-o", "out", *ASK), "prompts.jsonl")


def test_what_lies_there_of_another_model_or_judged_otherwise_is_not_taken_for_this(
    loralign: Any, model: Path, adapter: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loralign.runs import driftcheck

    words = ("driftcheck", "run", adapter, "--set", prompts, *ASK, "-o", "a")
    answer = driftcheck.open_responder

    def stop(opened: Any, *_: Any, **__: Any) -> Any:
        if not isinstance(opened, driftcheck.Opened) or opened.subject.model == str(adapter):
            raise KeyboardInterrupt
        return answer(opened, *_)

    # Cut off once the baseline has answered, then once both have.
    for name in ("open_responder", "drift_scores"):
        with monkeypatch.context() as patched:
            patched.setattr(driftcheck, name, stop)
            assert loralign(*words, "--baseline", model).code == 130
        assert_refused(loralign(*words, "--baseline", adapter), "model was", "run both alike")
        assert_refused(loralign(*words, "--baseline", model, "--toxicity", "none"), "toxicity was profanity")
    assert loralign(*words, "--baseline", model).code == 0
    # Told before anything is asked, not after.
    other = ("driftcheck", "run", model, "--set", prompts, *ASK, "-o", "b", "--baseline", "a", "--toxicity", "none")
    assert_refused(loralign(*other), "toxicity was profanity there and is none here")
    assert not (tmp_path / "b").exists()


def test_answers_are_kept_until_the_run_is_whole(
    loralign: Any, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loralign.evaluation import response_store
    from loralign.runs import driftcheck

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    words = ("driftcheck", "run", model, "--set", prompts, *ASK, "-o", "a")
    with monkeypatch.context() as patched:
        patched.setattr(driftcheck, "write_json", stop)
        assert loralign(*words).code == 130
    assert (tmp_path / "a/answers.jsonl").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(response_store.ResponseStore, "keep", stop)
        assert loralign(*words).code == 0
    assert not (tmp_path / "a/answers.jsonl").exists()
