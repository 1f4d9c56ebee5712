from __future__ import annotations

import json
from datetime import datetime

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from loralign.errors import StateError
from loralign.guard import estimate_fisher
from loralign.guard.fisher_estimation import FisherEstimation
from tests import zoo
from tests.guard import fisher_oracles

OPTIONS = {
    "method": "sketched",
    "rank": 3,
    "oversampling": 3,
    "passes": 2,
    "batch_size": 2,
    "checkpoint_every": 2,
    "min_agreement": 0.0,
    "show_progress": False,
}


class _InterruptError(Exception):
    pass


def _interrupted(monkeypatch, model, samples, after, **options):
    """Run until ``after`` batches are measured, then fail in the middle of the next one."""
    measure, count = FisherEstimation._measure, [0]

    def counted(self, batch):
        count[0] += 1
        if count[0] <= after:
            return measure(self, batch)
        # Some of the layers have the interrupted batch already.
        self.sums.layers[0].moment.add_(1)
        raise _InterruptError

    with monkeypatch.context() as patched:
        patched.setattr(FisherEstimation, "_measure", counted)
        with pytest.raises(_InterruptError):
            estimate_fisher(model, samples, **OPTIONS, **options)


@pytest.mark.parametrize("kind", ["empirical", "sampled"])
@pytest.mark.parametrize("after", [1, 3, 7])
def test_a_resumed_estimation_is_the_same_to_the_last_bit(kind, after, tmp_path, monkeypatch):
    model, samples = zoo.lora_model(dtype=torch.float32), fisher_oracles.completions(9)
    whole = estimate_fisher(model, samples, **OPTIONS, kind=kind)
    directory = tmp_path / "state"
    _interrupted(monkeypatch, model, samples, after, kind=kind, checkpoint=directory)
    assert directory.exists() == (after >= 2)
    measured = []
    measure = FisherEstimation._measure
    monkeypatch.setattr(
        FisherEstimation, "_measure", lambda self, batch: (measured.append(batch.rows), measure(self, batch))[1]
    )
    resumed = estimate_fisher(model, samples, **OPTIONS, kind=kind, checkpoint=directory)
    # Five batches a pass, saved after the second and fourth of each.
    assert len(measured) == {1: 10, 3: 8, 7: 3}[after]
    assert not directory.exists()
    assert resumed.info.tokens == whole.info.tokens
    for name, layer in whole.layers.items():
        assert torch.equal(resumed.layers[name].basis, layer.basis)
        assert torch.equal(resumed.layers[name].eigenvalues, layer.eigenvalues)
        assert resumed.layers[name].trace == layer.trace
        assert resumed.layers[name].half_agreement == layer.half_agreement


def test_checkpoints_of_something_else_are_refused(tmp_path, monkeypatch):
    model, samples = zoo.lora_model(), fisher_oracles.completions(9)
    directory = tmp_path / "state"
    _interrupted(monkeypatch, model, samples, 3, checkpoint=directory)
    for options in ({"seed": 1}, {"reduction": "sum"}, {"rank": 2}):
        with pytest.raises(StateError, match="other settings, samples or weights"):
            estimate_fisher(model, samples, **{**OPTIONS, **options}, checkpoint=directory)
    with pytest.raises(StateError, match="other settings"):
        estimate_fisher(model, samples[1:], **OPTIONS, checkpoint=directory)
    other = zoo.lora_model()
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if "lora_B" in name).add_(1e-3)
    with pytest.raises(StateError, match="other settings"):
        estimate_fisher(other, samples, **OPTIONS, checkpoint=directory)
    # The file is still there and still good.
    estimate_fisher(model, samples, **OPTIONS, checkpoint=directory)
    assert not directory.exists()


def test_damaged_checkpoints_are_refused(tmp_path, monkeypatch):
    model, samples = zoo.lora_model(), fisher_oracles.completions(9)
    directory = tmp_path / "state"
    _interrupted(monkeypatch, model, samples, 3, checkpoint=directory)
    (file,) = directory.iterdir()
    content = file.read_bytes()
    for broken in (content[:-10], content[:20], b"", b"\x80\x04K\x01."):
        file.write_bytes(broken)
        with pytest.raises(StateError, match=r"cannot be read.*remove it"):
            estimate_fisher(model, samples, **OPTIONS, checkpoint=directory)
    file.write_bytes(content)
    save_file(load_file(file), file, metadata={"loralign": json.dumps({"version": 9, "fingerprint": ""})})
    with pytest.raises(StateError, match="other settings"):
        estimate_fisher(model, samples, **OPTIONS, checkpoint=directory)


def test_files_of_others_in_the_directory_are_left_there(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    estimate_fisher(zoo.lora_model(), fisher_oracles.completions(9), **OPTIONS, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _share(rank, store, output):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    subspace = estimate_fisher(zoo.lora_model(), fisher_oracles.completions(9), **OPTIONS, checkpoint=output / "state")
    subspace.save(output / str(rank))
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_samples(tmp_path):
    torch.multiprocessing.spawn(_share, (tmp_path / "store", tmp_path), nprocs=2)
    alone = estimate_fisher(zoo.lora_model(), fisher_oracles.completions(9), **OPTIONS)
    both = [type(alone).load(tmp_path / str(rank)) for rank in (0, 1)]
    assert not (tmp_path / "state").exists()
    assert both[0].info.tokens == alone.info.tokens
    assert both[0].info.samples == 9
    for name, layer in alone.layers.items():
        assert torch.equal(both[0].layers[name].basis, both[1].layers[name].basis)
        torch.testing.assert_close(both[0].layers[name].eigenvalues, layer.eigenvalues, rtol=1e-5, atol=0)
        assert both[0].layers[name].trace == pytest.approx(layer.trace)
    assert min(alone.similarity(both[0]).values()) > 1 - 1e-5
    created = datetime.fromisoformat(both[0].info.created)
    assert created.utcoffset() is not None
