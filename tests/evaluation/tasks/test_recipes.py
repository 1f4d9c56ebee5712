from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loralign.evaluation.tasks.harness import known_tasks
from loralign.evaluation.tasks.recipes import ADVERSARIAL, RECIPES, adversarial_task, expand_recipes


@pytest.fixture(scope="module")
def index() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = TaskManager().task_index
    return found


def test_every_task_of_a_recipe_is_in_the_installed_harness(index: dict[str, Any]) -> None:
    assert set(RECIPES) == {"glue", "superglue", "truthfulqa", "advglue", "ifeval"}
    for recipe, names in RECIPES.items():
        for name in names:
            assert (ADVERSARIAL[name] if recipe == "advglue" else name) in index, name
            assert name in known_tasks()
    assert set(RECIPES["advglue"]) == set(ADVERSARIAL)
    # The harness's own lists of what belongs together.
    assert set(RECIPES["glue"]) == index["glue"].tags
    assert set(RECIPES["superglue"]) == index["super-glue-lm-eval-v1"].tags
    assert set(RECIPES["truthfulqa"]) | {"truthfulqa_gen"} == index["truthfulqa"].tags


def test_the_tasks_of_superglue_are_on_its_data(index: dict[str, Any]) -> None:
    assert all("super_glue" in str(index[name].yaml_path) for name in RECIPES["superglue"])


def test_names_in_place_of_recipes_come_once() -> None:
    assert expand_recipes(["sst2", "glue", "ifeval", "mine"]) == [
        "sst2", "cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "wnli", "ifeval", "mine",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(ADVERSARIAL))
def test_a_task_of_advglue_asks_as_its_glue_task_does(name: str, index: dict[str, Any], tmp_path: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    attacked = load_yaml(adversarial_task(name, index, tmp_path))
    glue = load_yaml(index[ADVERSARIAL[name]].yaml_path)
    for field in ("doc_to_text", "doc_to_target", "doc_to_choice", "metric_list", "output_type"):
        assert attacked[field] == glue[field]
    assert (attacked["task"], attacked["dataset_path"], attacked["dataset_name"]) == (name, "AI-Secure/adv_glue", name)
    assert (attacked["training_split"], attacked["validation_split"]) == (None, "validation")


def test_a_task_of_advglue_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from loralign.evaluation.tasks.harness import task_scores
    from tests.evaluation.models import build, character_tokenizer

    rows = [
        {"premise": "A dog runs.", "hypothesis": "An animal moves.", "label": label, "idx": label} for label in range(3)
    ]
    asked = []

    def load(path: str, name: str, **options: Any) -> Any:
        asked.append((path, name))
        return datasets.DatasetDict({"validation": datasets.Dataset.from_list(rows)})

    monkeypatch.setattr("datasets.load_dataset", load)
    scores = task_scores(build("llama"), character_tokenizer(), ["adv_mnli"], keep_samples=True, show_progress=False)
    assert asked == [("AI-Secure/adv_glue", "adv_mnli")]
    assert [(one.task, one.metric, one.n) for one in scores.scores] == [("adv_mnli", "acc", 3)]
    # The three labels come with the same question, so that exactly one answer is right.
    assert scores.scores[0].value == pytest.approx(1 / 3)
    assert scores.samples is not None
    assert "A dog runs." in scores.samples[0].prompt
