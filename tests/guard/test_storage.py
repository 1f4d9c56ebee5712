from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralign.errors import OutputError, StateError
from loralign.guard import AlignmentSubspace, estimate_fisher
from loralign.guard import storage as module
from loralign.guard.storage import METADATA_FILE, TENSORS_FILE
from tests import zoo
from tests.guard import fisher_oracles


@pytest.fixture(scope="module")
def subspace():
    samples = fisher_oracles.completions(8)
    return estimate_fisher(zoo.lora_model(), samples, energy=0.6, min_agreement=0, show_progress=False, name="a/model")


@pytest.fixture
def stored(subspace, tmp_path):
    subspace.save(tmp_path / "subspace")
    return tmp_path / "subspace"


def test_everything_comes_back_to_the_last_bit(subspace, stored):
    assert sorted(path.name for path in stored.iterdir()) == [METADATA_FILE, TENSORS_FILE]
    again = AlignmentSubspace.load(stored, zoo.lora_model())
    assert again.info == subspace.info
    assert list(again.layers) == list(subspace.layers)
    assert again.scale == subspace.scale
    for name, layer in subspace.layers.items():
        other = again.layers[name]
        assert torch.equal(other.basis, layer.basis)
        assert torch.equal(other.eigenvalues, layer.eigenvalues)
        empty = {"basis": torch.zeros(1, 1), "eigenvalues": torch.zeros(1)}
        assert replace(other, **empty).__dict__.keys() == layer.__dict__.keys()
        for field in ("trace", "columns", "half_agreement", "weights"):
            assert getattr(other, field) == getattr(layer, field)


def test_the_metadata_say_where_it_comes_from(stored, subspace):
    document = json.loads((stored / METADATA_FILE).read_text())
    info = document["info"]
    assert info["model"] == "a/model"
    assert {"revision", "fingerprint", "data_fingerprint", "kind", "samples", "created", "version"} <= set(info)
    layer = document["layers"]["model.layers.0.mlp.up_proj"]
    assert layer["energy"] == pytest.approx(subspace.layers["model.layers.0.mlp.up_proj"].energy)
    assert (layer["rows"], layer["columns"]) == (40, 24)


def test_a_control_is_stored_like_any_other(subspace, tmp_path):
    subspace.random_like(3).truncated(2).save(tmp_path / "random")
    again = AlignmentSubspace.load(tmp_path / "random", zoo.lora_model())
    assert again.info.kind == "random"
    assert {layer.rank for layer in again.layers.values()} == {2}


def test_foreign_models_are_refused_while_loading(stored):
    with pytest.raises(StateError, match="other weights"):
        AlignmentSubspace.load(stored, zoo.lora_model(seed=4))
    with pytest.raises(StateError, match="has no layer"):
        AlignmentSubspace.load(stored, zoo.gpt2())


def test_nothing_is_overwritten_or_left_half_written(subspace, stored, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="exists already"):
        subspace.save(stored)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        subspace.save(tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["subspace"]


def _edit(directory, change):
    """Change the metadata and make their own checksum right again."""
    document = json.loads((directory / METADATA_FILE).read_text())
    document.pop("sha256")
    change(document)
    document["sha256"] = module._document_digest(document)
    (directory / METADATA_FILE).write_text(json.dumps(document))


def _say(directory, old, new):
    path = directory / METADATA_FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def _flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def _other_shape(directory):
    tensors = load_file(directory / TENSORS_FILE)
    name = next(name for name in tensors if name.endswith("basis"))
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, directory / TENSORS_FILE)
    _edit(directory, lambda d: d["tensors"].update(sha256=module._file_digest(directory / TENSORS_FILE)))


def _lost_layer(directory):
    tensors = load_file(directory / TENSORS_FILE)
    save_file({name: one for name, one in tensors.items() if "layers.1" not in name}, directory / TENSORS_FILE)
    _edit(directory, lambda d: d["tensors"].update(sha256=module._file_digest(directory / TENSORS_FILE)))


DAMAGES = {
    "no tensors": (lambda d: (d / TENSORS_FILE).unlink(), "no file subspace.safetensors"),
    "no metadata": (lambda d: (d / METADATA_FILE).unlink(), "no file subspace.json"),
    "truncated tensors": (lambda d: (d / TENSORS_FILE).write_bytes((d / TENSORS_FILE).read_bytes()[:-4]), "truncated"),
    "empty tensors": (lambda d: (d / TENSORS_FILE).write_bytes(b""), "truncated or was altered"),
    "altered tensors": (lambda d: _flip(d / TENSORS_FILE, -5), "truncated or was altered"),
    "truncated metadata": (
        lambda d: (d / METADATA_FILE).write_text((d / METADATA_FILE).read_text()[:-40]),
        "is not JSON",
    ),
    "altered metadata": (lambda d: _say(d, '"samples": 8', '"samples": 9'), "truncated or was altered"),
    "not a number": (lambda d: _say(d, '"samples": 8', '"samples": NaN'), "is not JSON: NaN"),
    "a list": (lambda d: (d / METADATA_FILE).write_text("[]"), "does not describe a subspace"),
    "another format": (lambda d: _edit(d, lambda x: x.update(format="other")), "does not describe a subspace"),
    "another version": (lambda d: _edit(d, lambda x: x.update(format_version=2)), "format version 2 is unknown"),
    "lost entry": (lambda d: _edit(d, lambda x: x["info"].pop("kind")), "cannot be read as a subspace"),
    "other shape": (_other_shape, r"cannot be read as a subspace: .* shapes \(23, "),
    "lost layer": (_lost_layer, "cannot be read as a subspace"),
    "no checksum of the tensors": (lambda d: _edit(d, lambda x: x.pop("tensors")), "cannot be read as a subspace"),
    "no layers": (lambda d: _edit(d, lambda x: x.update(layers={})), "cannot be read as a subspace"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_in_one_line(damage, stored):
    change, match = DAMAGES[damage]
    change(stored)
    with pytest.raises(StateError, match=match) as caught:
        AlignmentSubspace.load(stored)
    assert str(stored) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StateError, match=r"nowhere: no file subspace\.json"):
        AlignmentSubspace.load(tmp_path / "nowhere")


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("name", ["subspace.pt", "subspace.bin", "subspace.pkl"])
def test_pickles_are_never_loaded(name, stored):
    (stored / TENSORS_FILE).unlink()
    (stored / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(StateError, match=rf"{name} is a pickle, which is never loaded"):
        AlignmentSubspace.load(stored)


def test_a_pickle_in_the_place_of_the_tensors_is_not_loaded(stored):
    (stored / TENSORS_FILE).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(StateError, match="truncated or was altered"):
        AlignmentSubspace.load(stored)
    _edit(stored, lambda d: d["tensors"].update(sha256=module._file_digest(stored / TENSORS_FILE)))
    with pytest.raises(StateError, match="cannot be read as a subspace"):
        AlignmentSubspace.load(stored)
