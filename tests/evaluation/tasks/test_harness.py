from __future__ import annotations

import copy
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loralign.errors import ConfigError, DataError, ModelError
from loralign.evaluation.tasks.harness import task_scores
from loralign.evaluation.tasks.local import local_task
from tests.evaluation.models import build, character_tokenizer, with_adapter
from tests.evaluation.tasks.files import exchange, gsm8k_file, mmlu_file, sst2_file, write
from tests.evaluation.test_scoring import state


def score(model: Any, tasks: Any, tokenizer: Any = None, **options: Any) -> Any:
    return task_scores(model, tokenizer or character_tokenizer(), tasks, **{"show_progress": False, **options})


def test_the_model_and_its_surroundings_are_left_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = with_adapter(build("llama", dtype=torch.bfloat16), std=0.2).train()
    model.get_base_model().model.layers[0].eval()
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    tokenizer = character_tokenizer()
    tokenizer.pad_token = None
    before, weights = state(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance = (random.getstate(), torch.get_rng_state(), list(np.random.get_state()[1]))  # noqa: NPY002
    logger = logging.getLogger("lm_eval")
    log = (logger.level, logger.propagate, list(logger.handlers))
    capfd.readouterr()  # what libraries say when they are first imported
    score(model, [local_task("sst2", sst2_file(tmp_path)), local_task("gsm8k", gsm8k_file(tmp_path))], tokenizer,
          max_new_tokens=4)  # fmt: skip
    assert state(model) == before
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in weights.items()
    )
    assert tokenizer.pad_token is None
    assert random.getstate() == chance[0]
    assert torch.equal(torch.get_rng_state(), chance[1])
    assert list(np.random.get_state()[1]) == chance[2]  # noqa: NPY002
    assert (logger.level, logger.propagate, logger.handlers) == log
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_embeddings_that_were_set_apart_stay_apart(tmp_path: Path) -> None:
    model = build("llama")
    model.config.tie_word_embeddings = True
    head = model.lm_head.weight
    assert not torch.equal(head, model.model.embed_tokens.weight)
    score(model, [local_task("sst2", sst2_file(tmp_path))], limit=1)
    assert model.lm_head.weight is head
    assert "tie_weights" not in vars(model)


def test_an_adapter_that_is_switched_off_scores_as_the_base(tmp_path: Path) -> None:
    tasks = [local_task("sst2", sst2_file(tmp_path))]
    base = score(build("llama"), tasks, keep_samples=True)
    model = with_adapter(build("llama"), std=0.3)
    assert score(model, tasks, keep_samples=True).samples != base.samples
    with model.disable_adapter():
        assert score(model, tasks, keep_samples=True) == base


def test_equal_arguments_give_equal_scores_and_the_seed_draws_the_examples(tmp_path: Path) -> None:
    solved = [exchange(f"Review {i}: is it good?", ("positive", "negative")[i % 2]) for i in range(8)]
    task = local_task("sst2", sst2_file(tmp_path), examples=write(tmp_path / "solved.jsonl", solved))
    model = build("gpt2")
    first = score(model, [task], keep_samples=True, num_fewshot=1)
    assert [one.fewshot for one in first.scores] == [1]
    random.seed(5)
    torch.manual_seed(5)
    assert score(model, [task], keep_samples=True, num_fewshot=1) == first
    other = score(model, [task], keep_samples=True, num_fewshot=1, seed=1)
    assert [one.prompt for one in other.samples] != [one.prompt for one in first.samples]


def test_limit_and_standard_error(tmp_path: Path) -> None:
    path = mmlu_file(tmp_path)
    (one,) = score(build("llama"), [local_task("mmlu", path)], limit=4, keep_samples=True).scores
    values = [sample.values["acc"] for sample in score(build("llama"), [local_task("mmlu", path)], limit=4,
                                                       keep_samples=True).samples]  # fmt: skip
    assert one.n == len(values) == 4
    assert one.value == pytest.approx(np.mean(values))
    assert one.stderr == pytest.approx(np.std(values, ddof=1) / 2)
    assert (one.task, one.metric, one.filter, one.higher_is_better, one.version, one.fewshot) == (
        "local_mmlu", "acc", "none", True, "1", 0,
    )  # fmt: skip


def test_samples_are_kept_only_where_asked_for(tmp_path: Path) -> None:
    assert score(build("llama"), [local_task("sst2", sst2_file(tmp_path))]).samples is None


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = mmlu_file(tmp_path)
    assert score(build("llama"), [local_task("mmlu", path)]).scores[0].n == 6
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert score(build("llama"), [local_task("mmlu", path)]).scores[0].n == 3
    assert not (tmp_path / "datasets").exists()


def test_log_likelihoods_of_a_bfloat16_model_are_of_a_float32_softmax(tmp_path: Path) -> None:
    scores = score(build("llama", dtype=torch.bfloat16), [local_task("mmlu", mmlu_file(tmp_path))], keep_samples=True)
    likelihoods = torch.tensor([value for one in scores.samples for value in one.response])
    assert not torch.equal(likelihoods, likelihoods.bfloat16().float())


def test_prompts_longer_than_the_window_are_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "long.jsonl", [exchange("Good or bad? " * 40, "positive")])
    scores = score(build("gpt2"), [local_task("sst2", path), local_task("mmlu", mmlu_file(tmp_path))])
    assert scores.truncated == ("local_sst2",)
    path = write(tmp_path / "sums.jsonl", [exchange("1 + 1? " * 40, "#### 2")])
    assert score(build("gpt2"), [local_task("gsm8k", path)], max_new_tokens=4).truncated == ("local_gsm8k",)


def test_a_model_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(ModelError, match="task local_sst2: a log-likelihood is not a number at document 0"):
        score(model, [local_task("sst2", sst2_file(tmp_path))])


@pytest.mark.parametrize("name", ["sst2", "adv_mnli", "mmlu", "truthfulqa"])
def test_data_that_are_not_here_are_named_by_their_task(name: str) -> None:
    with pytest.raises(DataError, match=r"^task \w+: its data are not here and the hub cannot be reached") as caught:
        score(build("llama"), [name])
    assert name.split("_")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tasks", "options", "words"),
    [
        ([], {}, "no task is named"),
        (["sst3"], {}, "the harness has no task 'sst3'.*did you mean 'sst2'"),
        (["humaneval"], {}, "task humaneval: it runs code that the model writes"),
        (["local", "local"], {}, "the task 'local_sst2' is named twice"),
        (["local"], {"num_fewshot": 2}, "task local_sst2: num_fewshot is 2, but there is no file"),
        (["local"], {"num_fewshot": -1}, "num_fewshot is -1"),
        (["local"], {"limit": 0}, "limit is 0"),
        (["local"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["local"], {"batch_size": 0}, "batch_size is 0"),
        (["local"], {"batch_size": "big"}, "batch_size is 'big'"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, tasks: list[str], options: dict[str, Any], words: str) -> None:
    specs = [local_task("sst2", sst2_file(tmp_path)) if name == "local" else name for name in tasks]
    with pytest.raises(ConfigError, match=words):
        score(build("llama"), specs, **options)


def test_faults_of_model_and_task_together(tmp_path: Path) -> None:
    sums = local_task("gsm8k", gsm8k_file(tmp_path))
    with pytest.raises(ConfigError, match="answers of 256 tokens leave no room for a prompt in the model's 256 posit"):
        score(build("llama"), [sums])
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        score(build("llama"), [sums], character_tokenizer(None), chat_template=True)
    few = write(tmp_path / "solved.jsonl", [exchange("1 + 1?", "#### 2")])
    with pytest.raises(ConfigError, match=r"task local_gsm8k: the harness cannot run it: .*fewshot"):
        score(build("llama"), [local_task("gsm8k", gsm8k_file(tmp_path), examples=few)], num_fewshot=3)


def test_without_the_harness_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed \(pip install loralign\[tasks\]\)"):
        score(build("llama"), [local_task("sst2", sst2_file(tmp_path))])


def test_progress_goes_to_the_error_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(build("llama"), [local_task("sst2", sst2_file(tmp_path))], show_progress=True, batch_size="auto")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Running loglikelihood requests: 100%" in captured.err
