"""A run's directory: what may be cleared, and what stands while something new is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from loralign.errors import OutputError
from loralign.files import atomic_directory, atomic_path
from loralign.runs.guarding import _beside
from loralign.runs.output import check_inputs, clear, save_adapter


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    kept = tmp_path / "lr=1" / "adapter"
    kept.mkdir(parents=True)
    for name in (str(kept), f"helpful={tmp_path / 'lr=1' / '*'}"):
        with pytest.raises(OutputError, match="which the run needs"):
            check_inputs(tmp_path / "lr=1", [name])
    check_inputs(tmp_path / "other", [str(kept)])


def test_the_base_of_an_adapter_is_needed_as_well(tmp_path: Path) -> None:
    """It may be the start of the very run that is to be replaced."""
    start, adapter = tmp_path / "run" / "start", tmp_path / "mended"
    start.mkdir(parents=True)
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(start)}))
    with pytest.raises(OutputError, match="which the run needs"):
        check_inputs(tmp_path / "run", [str(adapter)])


def test_a_link_is_taken_away_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    (elsewhere / "deep").mkdir(parents=True)
    run.mkdir()
    (run / "link").symlink_to(elsewhere)
    (run / "run.json").touch()
    clear(run)
    assert list(run.iterdir()) == []
    assert (elsewhere / "deep").is_dir()


def test_an_adapter_stands_until_the_new_one_does(tmp_path: Path) -> None:
    target = tmp_path / "adapter"

    def save(content: str, fails: bool = False) -> None:
        def write(directory: str, **options: Any) -> None:
            (Path(directory) / "weights").write_text(content)
            if fails:
                raise OSError("No space left on device")

        model = SimpleNamespace(peft_config={"default": SimpleNamespace()}, save_pretrained=write)
        save_adapter(model, SimpleNamespace(save_pretrained=lambda directory: None), "base", target)

    save("old")
    with pytest.raises(OutputError, match="No space left"):
        save("half", fails=True)
    assert (target / "weights").read_text() == "old"
    save("new")
    assert (target / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_estimate_in_progress_has_a_name_beside_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _beside(Path()) == tmp_path.with_name(f"{tmp_path.name}.partial")
    assert _beside(Path("runs/a")) == tmp_path / "runs" / "a.partial"


def test_safetensors_own_complaint_of_a_full_disk_is_the_disks(tmp_path: Path) -> None:
    for write in (atomic_path(tmp_path / "pairs.safetensors"), atomic_directory(tmp_path / "subspace")):
        with pytest.raises(OutputError, match=r"cannot write: .*No space left"), write:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []
