"""The examples of the documentation run, its commands parse, its data loads, its error messages are the real ones."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from typer.core import TyperGroup

from loralign.cli import main
from loralign.cli.main import app
from loralign.data import load_preferences, load_prompts
from loralign.experiments.arguments import parse_experiment
from loralign.experiments.space_syntax import parse_space
from loralign.runs import parse_adapt_recipe, parse_recipe
from tests.docs.pages import PAGES, ROOT, blocks, commands, shown_files

SHORTER = {"max_steps=60": "max_steps=2", "save_steps=20": "save_steps=1"}
ROOMS = ("lora", "capture", "geometry", "guard", "training", "evaluation", "data", "models", "report")
EXPERIMENTS = ("ablate", "sweep", "controller", "stability", "sensitivity", "scaling")
# A machine without a GPU may refuse bfloat16 training, whatever the recipe says.
ON_CPU = ("--bf16", "false", "--use_cpu", "true")

quiet = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning", "ignore:.*pin_memory.*:UserWarning"
)


@quiet
@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md", "docs/adapting.md"])
def test_python_examples_run(
    page: str, tiny_default: None, run_directory: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_directory()
    for name, text in shown_files("docs/adapting.md").items():
        (directory / name).write_text(text, encoding="utf-8")
    found = blocks(page, "python")
    assert found
    scope: dict[str, Any] = {"__name__": "example"}
    for block in found:
        text = block.text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        # Line numbers of a failure are those of the page.
        exec(compile("\n" * (block.line - 1) + text, str(PAGES[page]), "exec"), scope)  # noqa: S102
    written = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    if page == "README.md":
        assert {"runs/python/geometry.jsonl", "runs/sft/geometry.jsonl"} <= written
    elif page == "docs/adapting.md":
        assert "runs/own/guard.jsonl" in written
    else:
        assert {"report.html", "runs/api/geometry.jsonl", "runs/api/adapter/adapter_config.json"} <= written
        assert "checkpoint-2" in capsys.readouterr().out


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_symbol_is_documented(room: str) -> None:
    text = PAGES["docs/python-api.md"].read_text(encoding="utf-8")
    section = text.partition(f"\n## {room}\n")[2].partition("\n## ")[0]
    entries = [
        line.split("|")[1].strip().strip("`").partition("(")[0] for line in section.splitlines() if "| `" in line
    ]
    assert sorted(entries) == sorted(importlib.import_module(f"loralign.{room}").__all__)


@quiet
@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[:2] == ["accelerate", "launch"]:
            launch = launch_command_parser().parse_args(words[2:])
            assert launch.module, words
            words = [launch.training_script, *launch.training_script_args]
        if words[0] == "loralign":
            _parse(words[1], words[2:], monkeypatch)


class Parsed(Exception):  # noqa: N818
    """An experiment that would begin now."""


def _parse(command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(name: str, own: Any, kind: Any, words: list[str]) -> None:
        recipe = parse_experiment(name, own, kind, words)
        if command == "sweep":
            parse_space(kind, recipe.own.space)
        raise Parsed

    if command in EXPERIMENTS and "--help" not in arguments:
        # Their commands take any words, which they read themselves.
        monkeypatch.setattr("loralign.experiments.arguments.parse_experiment", parse)
        context = _commands()[command].make_context(command, arguments)
        with pytest.raises(Parsed):
            context.command.invoke(context)
        return
    if command in ("align", "adapt"):
        ours = [word for word in arguments if word not in ("--json", "--help", "--all")]
        (parse_recipe if command == "align" else parse_adapt_recipe)([*ours, *ON_CPU])
        return
    # Checks names, types and counts of options without running the command.
    _commands()[command].make_context(command, arguments)


def _commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return dict(group.commands)


def test_every_command_is_in_the_readme() -> None:
    shown = {words[1] for words in commands("README.md") if words[0] == "loralign"}
    assert shown == set(_commands()) - {"demo"}


def test_make_targets_exist() -> None:
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()}
    used = {words[1] for page in PAGES for words in commands(page) if words[0] == "make"}
    assert {"demo", "test"} <= used <= targets


def test_data_of_the_quickstart_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = _write_files(tmp_path)
    loaded = set()
    for words in commands("docs/quickstart.md"):
        if words[:2] != ["loralign", "align"] or "--config" in words:
            continue
        recipe = parse_recipe([*words[2:], *ON_CPU])
        pairs = load_preferences(
            recipe.run.data, label_column=recipe.run.label_column, objectives=recipe.run.objectives or None
        )
        if recipe.run.validation_data:
            load_preferences(recipe.run.validation_data, split="validation", objectives=pairs.objectives)
        if recipe.geometry.preservation_weight:
            assert len(load_prompts(recipe.geometry.preservation_prompts)) == 2
        assert set(recipe.target_weights()) <= set(pairs.objectives)
        loaded |= {source.rpartition("=")[2] for source in pairs.sources}
    # Two of the files are there to be refused.
    assert loaded - {"builtin"} == set(files) - {"twins.jsonl", "misspelt.yaml"}


def test_error_messages_are_those_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _write_files(tmp_path)
    before = sorted(tmp_path.iterdir())
    lines = blocks("docs/quickstart.md", "console")[0].text.splitlines()
    shown = [(lines[index], lines[index + 1]) for index in range(0, len(lines), 2)]
    assert len(shown) > 5
    for command, expected in shown:
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(command.removeprefix("$ loralign ")))
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == expected
    assert sorted(tmp_path.iterdir()) == before, "a refused run wrote something"


def _write_files(directory: Path) -> dict[str, str]:
    files = shown_files("docs/quickstart.md")
    for name, text in {**files, **shown_files("docs/quickstart.md", "prompts")}.items():
        (directory / name).write_text(text, encoding="utf-8")
    return files
