"""Links lead somewhere, recipes are valid, and the small files that other programs read are in order."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from trl import DPOConfig

import loralign
from loralign.data import load_preferences
from loralign.models import resolve_model
from loralign.runs import AdaptArguments, AlignArguments, parse_recipe
from loralign.training import GeometryConfig, GuardConfig
from tests.docs.pages import PAGES, RECIPES, ROOT, anchors, links

KNOWN = {one.name for kind in (AlignArguments, GeometryConfig, GuardConfig, DPOConfig) for one in fields(kind)}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    assert [target for target in links(page) if not _leads_somewhere(PAGES[page], target)] == []


def _leads_somewhere(page: Path, target: str) -> bool:
    if re.match(r"https?://", target):
        return True
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    return path.exists() and (not anchor or anchor in anchors(path))


def test_the_site_reaches_every_page() -> None:
    reached = set(links("docs/index.md"))
    assert {Path(page).name for page in PAGES if page.startswith("docs/")} - {"index.md"} <= reached


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) <= KNOWN
    recipe = parse_recipe(["--config", str(path), "--bf16", "false", "--use_cpu", "true"])
    # A value that YAML reads as something else than was meant, such as 1e-4 as text, would differ here.
    for key, value in content.items():
        if key not in ("bf16", "gradient_checkpointing"):
            owner = next(
                part for part in (recipe.run, recipe.geometry, recipe.guard, recipe.training) if hasattr(part, key)
            )
            assert getattr(owner, key) == value, key
    pairs = load_preferences(recipe.run.data)
    assert recipe.training.per_device_train_batch_size % len(pairs.objectives) == 0
    assert recipe.training.output_dir == f"runs/{path.stem}"
    if not path.stem.startswith("smollm2"):
        assert resolve_model(recipe.run.model).kind == "hub"


def test_every_recipe_is_described() -> None:
    text = PAGES["docs/recipes.md"].read_text(encoding="utf-8")
    assert set(re.findall(r"\(\.\./recipes/([\w.-]+)\)", text)) == {path.name for path in RECIPES}


def test_every_setting_is_described_with_its_default() -> None:
    rows = [
        line.split("|")[1] for line in PAGES["docs/recipes.md"].read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    described = {name: default for row in rows for name, default in re.findall(r"`(\w+)`(?: \[([^\]]*)\])?", row)}
    for one in (
        *fields(GeometryConfig),
        *fields(GuardConfig),
        *_described(AlignArguments),
        *_described(AdaptArguments),
    ):
        assert one.name in described, one.name
        default = described[one.name]
        value = one.default_factory() if callable(one.default_factory) else one.default
        value = value[0] if isinstance(value, list) and value else value
        if default:
            assert yaml.safe_load(default) == value, one.name
        else:
            assert value is None or value == [], one.name


def _described(kind: Any) -> list[Any]:
    """The fields whose default is the same in every command; of the others the page says what it is where."""
    other = {"guard", "data"} if kind is AdaptArguments else {"judged_prompts"}
    return [one for one in fields(kind) if one.name not in other]


def test_the_citation_file() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == loralign.__version__
    assert citation["license"] == "Apache-2.0"


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{loralign.__version__}]" in text


def test_hooks_call_the_tools_of_the_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]


def test_pictures_are_drawings_without_scripts() -> None:
    for path in (ROOT / "docs" / "images").glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}  # noqa: S314 - our own file
        assert {"title", "desc"} <= tags
        assert not tags & {"script", "foreignObject", "image"}
