"""Lists of tasks that papers report together, for users with access to the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

RECIPES: dict[str, tuple[str, ...]] = {
    "glue": ("cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli"),
    "superglue": ("boolq", "cb", "copa", "multirc", "record", "sglue_rte", "wic", "wsc"),
    # The two that need no judge or further packages; truthfulqa_gen can be asked for by its own name.
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "advglue": ("adv_sst2", "adv_qqp", "adv_mnli", "adv_mnli_mismatched", "adv_qnli", "adv_rte"),
    "ifeval": ("ifeval",),
}
"""By name, the harness's tasks; those of ``advglue`` are its GLUE tasks on other data, see :data:`ADVERSARIAL`."""

ADVERSARIAL: dict[str, str] = {
    "adv_sst2": "sst2",
    "adv_qqp": "qqp",
    "adv_mnli": "mnli",
    "adv_mnli_mismatched": "mnli_mismatch",
    "adv_qnli": "qnli",
    "adv_rte": "rte",
}
"""AdvGLUE (Wang et al. 2021), which the harness does not have: the GLUE task that each is an attacked copy of."""

_ADVERSARIAL_DATA = "AI-Secure/adv_glue"


def expand_recipes(names: Iterable[str]) -> list[str]:
    """Put the tasks of a recipe in its place; each task comes once, where it was first named."""
    return list(dict.fromkeys(task for name in names for task in RECIPES.get(name, (name,))))


def adversarial_task(name: str, registry: Mapping[str, Any], directory: Path) -> str:
    """Write a task of AdvGLUE: prompt, choices and metrics of the GLUE task, so that the two compare, and its data.

    Args:
        name: of :data:`ADVERSARIAL`.
        registry: the harness's index of tasks.
        directory: where to write the YAML.

    Returns:
        The file, which the harness takes for a task's name.
    """
    config = {
        "include": str(registry[ADVERSARIAL[name]].yaml_path),
        "task": name,
        "tag": None,
        "dataset_path": _ADVERSARIAL_DATA,
        "dataset_name": name,
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)
