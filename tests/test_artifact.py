from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ncf
from ncf import GMF, NeuMF
from ncf.interactions import Vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    GMF(5, 7, factors=3).save(tmp_path / "model")
    return tmp_path / "model"


def description(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def weights(folder: Path) -> Path:
    return folder / description(folder)["files"]["model"]


@pytest.mark.parametrize("raw", [["a", "b", "c", "d", "e"], [10, 30, 20, 50, 40]])
def test_vocabularies_travel_with_the_model(tmp_path: Path, raw: list) -> None:
    model = GMF(5, 7)
    model.user_ids = Vocabulary(raw)
    model.save(tmp_path)
    again = ncf.load(tmp_path)
    assert again.user_ids is not None
    assert again.user_ids.decode(torch.arange(5)) == raw
    assert again.item_ids is None


def test_a_missing_tensor_an_extra_one_and_a_wrong_shape_are_named(folder: Path) -> None:
    file = weights(folder)
    good = load_file(file)
    save_file({name: tensor for name, tensor in good.items() if name != "head.bias"}, file)
    with pytest.raises(ValueError, match=r"missing \['head.bias'\]"):
        ncf.load(folder)
    save_file({**good, "head.scale": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"unexpected \['head.scale'\]"):
        ncf.load(folder)
    save_file({**good, "head.weight": torch.ones(1, 9)}, file)
    with pytest.raises(ValueError, match=r"head.weight has shape \(1, 9\), config.json asks for \(1, 3\)"):
        ncf.load(folder)


def test_damaged_files_are_one_clear_error(folder: Path) -> None:
    file = weights(folder)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        ncf.load(folder)
    file.unlink()
    with pytest.raises(ValueError, match="is incomplete"):
        ncf.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a model"):
        ncf.load(folder)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        ncf.load(folder / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"model": "../secret.safetensors"}}, "outside its folder"),
        ({"format": 99}, "format 99"),
        ({"model": "Popen"}, "names the model 'Popen'"),
        ({"config": {"num_users": 5, "colour": 3}}, "cannot be built"),
    ],
)
def test_a_description_that_cannot_be_trusted_is_refused(folder: Path, change: dict, message: str) -> None:
    (folder / "config.json").write_text(json.dumps(description(folder) | change))
    with pytest.raises(ValueError, match=message):
        ncf.load(folder)


def test_a_save_that_fails_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: object) -> None:
        raise OSError("no space left on device")

    old = ncf.load(folder)
    monkeypatch.setattr("ncf.artifact.write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        NeuMF(50, 70).save(folder)
    again = ncf.load(folder)
    assert torch.equal(again.head.weight, old.head.weight)


def test_a_new_model_replaces_the_old_one_whole(folder: Path) -> None:
    model = NeuMF(50, 70)
    model.save(folder)
    assert torch.equal(ncf.load(folder).head.weight, model.head.weight)
    assert len(list(folder.iterdir())) == 2
