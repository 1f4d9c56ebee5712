"""Whether a run may be resumed: there is something of ours to go on from, and it is the same run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from loralign.errors import OutputError, StateError
from loralign.guard.identity import fingerprint, layer_identity
from loralign.models import LoadedModel, inspect_adapter, portable_base_name
from loralign.models.start import START_NAME, adapter_digest
from loralign.runs.output import ADAPTER, RUN_FILE
from loralign.training import last_whole_checkpoint
from loralign.training.checkpoint import foreign_checkpoints

logger = logging.getLogger(__name__)


def run_identity(loaded: LoadedModel, data: str, adapter: str | None = None) -> dict[str, Any]:
    """What makes a run the one that it is, as plain values for ``run.json``.

    Args:
        loaded: the base, without an adapter.
        data: fingerprint of the training data.
        adapter: that is trained further.
    """
    source = loaded.source
    name = str(Path(source.location).resolve()) if source.kind == "path" else portable_base_name(source.name)
    layers = {
        name: layer_identity(module)
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    known = all(one.weights is not None for one in layers.values())
    return {
        "base": {
            # A merged model is known by what was merged, since its directory is the cache's.
            "name": getattr(loaded.model.config, START_NAME, None) or name,
            "revision": source.hub_revision,
            "weights": fingerprint(layers) if known else None,
        },
        "adapter": None if adapter is None else adapter_digest(inspect_adapter(adapter)),
        "data": data,
    }


def run_to_resume(directory: Path, command: str, *, overwrite: bool = False) -> dict[str, Any] | None:
    """What ``run.json`` says of the run that is to be resumed, after making sure that resuming it loses nothing.

    A run without a whole checkpoint is begun anew, which only one that was cut off may be.

    Args:
        directory: the run's directory.
        command: ``align`` or ``adapt``.
        overwrite: whether what is there may be replaced.

    Returns:
        ``None`` where nothing is known of an earlier run, or nothing of it is gone on with.

    Raises:
        OutputError: the directory holds checkpoints of another trainer, a finished run that has no checkpoint, or no
            run that was cut off.
        StateError: the run there is of another command.
    """
    if not directory.is_dir() or all(path.name.startswith(".") for path in directory.iterdir()):
        return None
    earlier = _read_run(directory)
    if last_whole_checkpoint(directory) is None:
        if overwrite:
            return None
        _check_cut_off(directory, earlier)
    if earlier is not None and (there := earlier.get("kind", "align")) != command:
        raise StateError(
            f"the run there is of loralign {there}, not of loralign {command}",
            place=str(directory / RUN_FILE),
            fix="choose another output_dir",
        )
    return earlier


def check_same_run(earlier: Mapping[str, Any] | None, now: Mapping[str, Any], directory: Path) -> None:
    """Make sure that a resumed run is the one that was begun.

    Args:
        earlier: of :func:`run_to_resume`.
        now: what this run would write into ``run.json``.
        directory: the run's directory.

    Raises:
        StateError: another base model, adapter to begin from, training data, objectives or target weights.
    """
    if earlier is None:
        return
    problem, what = _difference(earlier, now)
    if problem is not None:
        raise StateError(
            problem, place=str(directory / RUN_FILE), fix=f"resume with the same {what}, or choose another output_dir"
        )


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str | None, str]:
    """What tells two runs apart, and which setting that is; ``None`` where nothing does."""
    old, new = earlier.get("identity"), now["identity"]
    if isinstance(old, Mapping):
        before, after = old["base"], new["base"]
        # By content where it is known on both sides: a model may have been moved, or another put in its place.
        known = before["weights"] is not None and after["weights"] is not None
        if any(before[key] != after[key] for key in (("weights",) if known else ("name", "revision"))):
            named = [f"{one['name']} {one['revision'] or ''}".rstrip() for one in (before, after)]
            if named[0] == named[1]:
                return f"the model {named[0]} has other weights than when the run there began", "model"
            return f"the run there trains {named[0]}, this one {named[1]}", "model"
        if old["adapter"] != new["adapter"]:
            return "the run there began from another adapter", "adapter"
        if old["data"] != new["data"]:
            return "the run there trains on other data", "data"
    for name in ("objectives", "target_weights"):
        if name in now and name in earlier and earlier[name] != now[name]:
            return f"the run there has {name} {earlier[name]}, this one {now[name]}", name
    return None, ""


def _read_run(directory: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_cut_off(directory: Path, earlier: Mapping[str, Any] | None) -> None:
    """Make sure that what is there is a run that was cut off before its first checkpoint."""
    place, fix = str(directory), "choose another output_dir, or pass --overwrite in place of --resume to lose it"
    foreign = foreign_checkpoints(directory)
    if foreign:
        raise OutputError(
            f"holds {foreign[-1].name} of another trainer, and no whole checkpoint of loralign's", place=place, fix=fix
        )
    status = None if earlier is None else earlier.get("status")
    # One whose adapter was removed to save space is made again.
    if status == "finished" and (directory / ADAPTER).is_dir():
        raise OutputError("holds a finished run, and no checkpoint to go on from", place=place, fix=fix)
    if status not in ("running", "finished"):
        raise OutputError("holds no run that was cut off, and no whole checkpoint", place=place, fix=fix)
