"""Two CPU processes measure, without training, what one measures on the same global batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loralign.training import GeometryConfig
from tests.evaluation import models
from tests.integration.children import Child, start_pair
from tests.training import runs


def measure(output: Path, options: dict[str, Any]) -> None:
    """Both measurements of one trainer; what they read goes to a file beside its directory."""
    torch.set_num_threads(1)
    # So small a sketch tells directions that are not the same everywhere; float64, since they magnify rounding.
    geometry = GeometryConfig(sketch_size=4)
    trainer = runs.trainer(output, geometry, extra={"model": models.build("llama", dtype=torch.float64)}, **options)
    found = trainer.measure_without_shared(3, batches=2)
    read = {
        "plain": trainer.measure_geometry(batches=2).layer_full,
        "attenuation": found.attenuation("layer"),
        "share": found.share("layer"),
    }
    if trainer.is_world_process_zero():
        save_file({name: tensor.contiguous() for name, tensor in read.items()}, output.with_suffix(".safetensors"))


def test_measurements_are_those_of_one_process(tmp_path: Path) -> None:
    Child(measure, tmp_path / "one", {"per_device_train_batch_size": 6}, log=tmp_path / "one.log").wait()
    options = {"per_device_train_batch_size": 3, "ddp_backend": "gloo"}
    for child in start_pair(measure, tmp_path / "two", options, log=tmp_path / "two.log"):
        child.wait()
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-6, atol=1e-12)
