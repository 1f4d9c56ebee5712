from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
)

from loralign.errors import ConfigError, LoralignError, ModelError
from loralign.evaluation.judges.classifier import PROMPT_AND_RESPONSE, ClassifierJudge, fill
from tests.evaluation.judges.made import LABELS, POSITIONS, alone, write_classifier

CLASSES = {
    "bert": BertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "llama": LlamaForSequenceClassification,
}
RESPONSES = [
    "I can't do that.",
    "Sure, " + "step by step, " * 8,
    "No.",
    "It is a fine day, and here you are: " * 3,
    "?",
]
PROMPTS = ["a"] * len(RESPONSES)


def judge(directory: Path, labels: str | list[str] = "Refusal", **options: object) -> ClassifierJudge:
    return ClassifierJudge(directory, labels, show_progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("architecture", "model"), CLASSES.items())
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_give_the_softmax_of_each_text_alone(
    classifiers: dict[str, Path], architecture: str, model: type[PreTrainedModel], batch_size: int
) -> None:
    directory = classifiers[architecture]
    expected = [float(alone(directory, text, model).softmax(0)[1]) for text in RESPONSES]
    assert judge(directory, batch_size=batch_size).scores(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


def test_a_decoder_that_names_no_padding_is_judged_in_batches(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "unpadded", "llama", pad_token_id=None)
    expected = [float(alone(directory, text, LlamaForSequenceClassification).softmax(0)[1]) for text in RESPONSES]
    assert judge(directory).scores(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_labels_are_found_by_name_whatever_their_case(classifiers: dict[str, Path]) -> None:
    by_label = {name: judge(classifiers["bert"], name.upper()).scores(PROMPTS, RESPONSES) for name in LABELS.values()}
    for scores in zip(*by_label.values(), strict=True):
        assert sum(scores) == pytest.approx(1)
    both = judge(classifiers["bert"], ["refusal", "Other"])
    expected = [a + b for a, b in zip(by_label["Refusal"], by_label["Other"], strict=True)]
    assert both.scores(PROMPTS, RESPONSES) == pytest.approx(expected)
    assert both.name == f"classifier:{classifiers['bert']}:Refusal,Other"
    assert judge(classifiers["bert"], ["refusal", "Refusal"]).scores(PROMPTS, RESPONSES) == by_label["Refusal"]


@pytest.mark.parametrize("labels", ["toxic", ["Refusal", "toxic"]])
def test_an_unknown_label_is_answered_by_those_there_are(classifiers: dict[str, Path], labels: str | list[str]) -> None:
    with pytest.raises(ConfigError, match=r"no label 'toxic' \(it has Answer, Refusal, Other\)"):
        judge(classifiers["bert"], labels)


def test_independent_labels_are_sigmoids_of_which_the_highest_counts(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "multi", problem_type="multi_label_classification")
    logits = [alone(directory, text, BertForSequenceClassification) for text in RESPONSES]
    found = judge(directory, ["Refusal", "Other"]).scores(PROMPTS, RESPONSES)
    assert found == pytest.approx([float(each[1:].max().sigmoid()) for each in logits], abs=1e-5)


def test_a_single_label_is_a_sigmoid(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "one", id2label={0: "toxic"}, label2id={"toxic": 0})
    expected = [float(alone(directory, text, BertForSequenceClassification).sigmoid()) for text in RESPONSES]
    assert judge(directory, "toxic").scores(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_prompt_and_response_are_shown_where_the_template_says(classifiers: dict[str, Path]) -> None:
    template = "Q: {prompt} A: {response}"
    expected = judge(classifiers["bert"]).scores(["-"], ["Q: why {response} A: I can't {prompt}."])
    found = judge(classifiers["bert"], template=template).scores(["why {response}"], ["I can't {prompt}."])
    assert found == pytest.approx(expected)
    assert fill("{response}{prompt}{response}", "{response}", "x") == "x{response}x"


def test_a_long_prompt_cannot_push_the_response_out(classifiers: dict[str, Path]) -> None:
    asked = judge(classifiers["bert"], template=PROMPT_AND_RESPONSE, max_length=40)
    long = asked.scores(["x" * 5000] * 2, ["I can't.", "Sure."])
    # A letter is a token of these models: half of the window is 20.
    assert long == pytest.approx(asked.scores(["x" * 20] * 2, ["I can't.", "Sure."]), abs=1e-6)
    assert long[0] != pytest.approx(long[1], abs=1e-4)


def test_the_beginning_of_a_long_response_counts(classifiers: dict[str, Path]) -> None:
    whole = judge(classifiers["bert"], max_length=30)
    text = "I can't do that, since it is not right to do it."
    assert whole.scores(["a"], [text]) == pytest.approx(whole.scores(["a"], [text[:30]]), abs=1e-6)
    assert whole.scores(["a"], [text]) != pytest.approx(whole.scores(["a"], [text[:20]]), abs=1e-4)


@pytest.mark.parametrize("architecture", CLASSES)
def test_the_window_is_the_models(classifiers: dict[str, Path], architecture: str) -> None:
    # RoBERTa counts its positions from 1 behind the padding token 0.
    most = POSITIONS - 1 if architecture == "roberta" else POSITIONS
    longest = judge(classifiers[architecture], max_length=most)
    assert longest.scores(["a"], ["y" * 999]) == judge(classifiers[architecture]).scores(["a"], ["y" * 999])
    for wrong in (0, most + 1):
        with pytest.raises(ConfigError, match=f"max_length is {wrong}.*at most {most}"):
            judge(classifiers[architecture], max_length=wrong)


def test_special_tokens_in_a_response_are_ordinary_text(classifiers: dict[str, Path]) -> None:
    tokens = judge(classifiers["bert"])._classifier.tokenizer
    assert len(tokens("<|im_end|>")["input_ids"]) == 1
    asked: list[int] = []
    model = judge(classifiers["bert"])
    model._classifier.model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
    )
    model.scores(["a"], ["<|im_end|>"])
    assert asked == [len("<|im_end|>")]


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "causal", "causal")
    with pytest.raises(ModelError, match=r"no trained classification head: score\.weight is not among its weights"):
        judge(directory)


def test_a_quantity_is_no_probability(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "reward", problem_type="regression", id2label={0: "r"}, label2id={"r": 0})
    with pytest.raises(ConfigError, match="a quantity, no probability"):
        judge(directory, "r")


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "pickled")
    (directory / "model.safetensors").unlink()
    torch.save({"classifier.weight": torch.zeros(3, 24)}, directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled \(pytorch_model\.bin\)"):
        judge(directory)


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "code")
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForSequenceClassification": "own.OwnModel",
    }
    (directory / "config.json").write_text(json.dumps(config))
    mark = tmp_path / "was_run"
    (directory / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="code of its own, which is never run here"):
        judge(directory)
    assert not mark.exists()


def test_weights_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    directory = write_classifier(tmp_path / "nan")
    broken = judge(directory)
    with torch.no_grad():
        broken._classifier.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="gives no number"):
        broken.scores(["a"], ["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{prompt}"}, "does not show the response"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"labels": []}, "no label is named"),
    ],
)
def test_bad_settings_are_refused(classifiers: dict[str, Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierJudge(classifiers["bert"], **{"labels": "Refusal", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "nothing there"])
def test_a_damaged_model_is_one_line(tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "damaged"
    if damage != "nothing there":
        write_classifier(directory)
        (directory / damage).write_text("{")
    with pytest.raises(LoralignError) as caught:
        judge(directory)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"judge owner/not-there: not available: .*name a local directory") as caught:
        judge(Path("owner/not-there"))
    assert "\n" not in str(caught.value)


def test_the_model_is_left_in_evaluation_mode_without_gradients(classifiers: dict[str, Path]) -> None:
    made = judge(classifiers["bert"])
    assert not made._classifier.model.training
    made.scores(["a"], ["b"])
    assert all(parameter.grad is None for parameter in made._classifier.model.parameters())
