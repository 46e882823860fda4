from __future__ import annotations

import json
import operator
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import ncf
from ncf import GMF, NeuMF
from ncf.data.interactions import Vocabulary
from ncf.models import saving


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


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_missing_tensor_an_extra_one_and_a_wrong_shape_are_named(folder: Path, device: str) -> None:
    file = weights(folder)
    good = load_file(file)
    save_file({name: tensor for name, tensor in good.items() if name != "head.bias"}, file)
    with pytest.raises(ValueError, match=r"missing \['head.bias'\]"):
        ncf.load(folder, device=device)
    save_file({**good, "head.scale": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"unexpected \['head.scale'\]"):
        ncf.load(folder, device=device)
    save_file({**good, "head.weight": torch.ones(1, 9)}, file)
    with pytest.raises(ValueError, match=r"head.weight has shape \(1, 9\), config.json asks for \(1, 3\)"):
        ncf.load(folder, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_damaged_files_are_one_clear_error(folder: Path, device: str) -> None:
    file = weights(folder)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        ncf.load(folder, device=device)
    file.unlink()
    with pytest.raises(ValueError, match="is incomplete"):
        ncf.load(folder, device=device)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a model"):
        ncf.load(folder, device=device)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        ncf.load(folder / "nothing", device=device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"model": "../secret.safetensors"}}, "outside its folder"),
        ({"files": {"model": "/etc/passwd"}}, "outside its folder"),
        ({"files": {"model": ".."}}, "outside its folder"),
        ({"files": {"model": ""}}, "outside its folder"),
        ({"files": {"model": "a/b.safetensors"}}, "outside its folder"),
        ({"files": {"model": 5}}, "does not describe a model"),
        ({"files": {"model": None}}, "does not describe a model"),
        ({"files": ["model"]}, "does not describe a model"),
        ({"files": {}}, "does not describe a model"),
        ({"format": 99}, "format 99"),
        ({"model": "Popen"}, "names the model 'Popen'"),
        ({"model": "EmbeddingModel"}, "names the model 'EmbeddingModel'"),
        ({"model": ["GMF"]}, "names the model"),
        ({"config": None}, "cannot be built"),
        ({"config": [5, 7]}, "cannot be built"),
        ({"config": {"num_users": 5, "num_items": 7, "device": "cpu"}}, "cannot be built"),
        ({"config": {"num_users": 5, "num_items": 7.5}}, "cannot be built"),
        ({"config": {"num_users": 10**18, "num_items": 7}}, "cannot be built"),
        ({"config": {"num_users": 10**30, "num_items": 7}}, "cannot be built"),
        ({"model": "MLP", "config": {"num_users": 5, "num_items": 7, "layers": "wide"}}, "cannot be built"),
        ({"config": {"num_users": 5, "colour": 3}}, "cannot be built"),
    ],
)
def test_a_description_that_cannot_be_trusted_is_refused(folder: Path, change: dict, message: str) -> None:
    (folder / "config.json").write_text(json.dumps(description(folder) | change))
    with pytest.raises(ValueError, match=message):
        ncf.load(folder)


@pytest.mark.parametrize("key", ["format", "model", "config", "files"])
def test_a_description_without_a_part_is_refused(folder: Path, key: str) -> None:
    rest = {name: value for name, value in description(folder).items() if name != key}
    (folder / "config.json").write_text(json.dumps(rest))
    with pytest.raises(ValueError, match="does not describe a model"):
        ncf.load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"GMF"', b"\xff\xfe", b"[" * 10_000])
def test_a_description_that_is_something_else_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="does not describe a model"):
        ncf.load(folder)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_that_are_no_real_numbers_are_refused(folder: Path, device: str) -> None:
    file = weights(folder)
    save_file({name: tensor.to(torch.int64) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"holds torch.int64, not floating-point numbers"):
        ncf.load(folder, device=device)


def test_a_vocabulary_that_is_damaged_or_too_long_is_refused(tmp_path: Path) -> None:
    model = GMF(3, 4)
    model.user_ids = Vocabulary([4, 5, 6])
    model.save(tmp_path)
    file = tmp_path / description(tmp_path)["files"]["user_ids"]
    good = file.read_bytes()
    for bad in (good[:-7], b"", b"PAR1"):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="is not a vocabulary"):
            ncf.load(tmp_path)
    pq.write_table(pa.table({"name": ["a"]}), file)
    with pytest.raises(ValueError, match="is not a vocabulary"):
        ncf.load(tmp_path)
    pq.write_table(pa.table({"id": [1, 2, 3, 4]}), file)
    with pytest.raises(ValueError, match="has 4 ids for the model's 3"):
        ncf.load(tmp_path)


def test_fault_15_nothing_in_the_folder_is_a_pickle(tmp_path: Path) -> None:
    model = GMF(3, 4)
    model.user_ids, model.item_ids = Vocabulary(["a", "b", "c"]), Vocabulary([7, 8, 9, 10])
    model.save(tmp_path)
    kinds = {".safetensors": 1, ".parquet": 2, ".json": 1}
    assert {kind: len(list(tmp_path.glob(f"*{kind}"))) for kind in kinds} == kinds
    assert len(list(tmp_path.iterdir())) == 4
    for file in tmp_path.iterdir():
        with pytest.raises(pickle.UnpicklingError), file.open("rb") as content:
            pickle.load(content)
        assert not zipfile.is_zipfile(file)  # the shell around the pickles of torch.save


def test_strings_of_any_script_travel(tmp_path: Path) -> None:
    raw = ["", " ", "天使", "a\nb", '"', "é", "e\u0301"]
    model = GMF(7, 4)
    model.user_ids = Vocabulary(raw)
    model.save(tmp_path)
    again = ncf.load(tmp_path).user_ids
    assert again is not None
    assert again.decode(torch.arange(7)) == raw
    assert again.encode(raw).tolist() == list(range(7))


@pytest.mark.parametrize("function", ["write_tensors", "_settle", "pq.write_table", "write_text"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_save_that_fails_anywhere_leaves_the_old_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int
) -> None:
    """The disk is full at the given call of a function."""
    left = calls
    real = operator.attrgetter(function)(saving)

    def full_disk(*args: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("no space left on device")
        return real(*args)

    old, new = ncf.load(folder), NeuMF(5, 7)
    new.user_ids, new.item_ids = Vocabulary(list("abcde")), Vocabulary(list("abcdefg"))
    monkeypatch.setattr(f"ncf.models.saving.{function}", full_disk)
    if calls and function in ("write_tensors", "write_text"):  # called once
        new.save(folder)
        assert len(list(folder.iterdir())) == 4
    else:
        with pytest.raises(OSError, match="no space"):
            new.save(folder)
        again = ncf.load(folder)
        assert type(again) is GMF
        assert torch.equal(again.head.weight, old.head.weight)
        assert again.user_ids is None
        monkeypatch.undo()
        new.save(folder)  # what the failure left is cleared away
        assert len(list(folder.iterdir())) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_a_killed_process_leaves_one_model_or_the_other_whole(tmp_path: Path) -> None:
    code = """
import os, random, signal, sys, time
import torch
import ncf
torch.set_num_threads(1)
folder = sys.argv[1]
models = [ncf.GMF(2000, 3000, seed=seed) for seed in (0, 1)]
start = time.perf_counter()
for model in reversed(models):
    model.save(folder)
both = time.perf_counter() - start
random.seed(0)
seen, kills = set(), 0
while kills < 40 or len(seen) < 2:  # however slow the machine, both are caught in the end
    kills += 1
    child = os.fork()
    if not child:
        while True:
            for model in models:
                model.save(folder)
    time.sleep(random.uniform(0, 2 * both))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = ncf.load(folder)
    assert torch.equal(loaded.head.weight, models[loaded.config["seed"]].head.weight)
    assert torch.equal(*(m.embeddings.weight("item_gmf") for m in (loaded, models[loaded.config["seed"]])))
    seen.add(loaded.config["seed"])
models[0].save(folder)
print(sorted(name.partition("-")[0] for name in os.listdir(folder)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == "['config.json', 'model']\n"


def test_only_the_models_own_files_are_replaced(folder: Path) -> None:
    others = [
        "model-card.md",
        "model-000000000000.pt",
        "user_ids-notes.txt",
        ".gitignore",
        "model-0.safetensors",
    ]
    for name in others:
        (folder / name).write_text("mine")
    (folder / "model-old").mkdir()
    NeuMF(5, 7).save(folder)
    assert [name for name in others if not (folder / name).exists()] == []
    assert (folder / "model-old").is_dir()
    assert len(list(folder.iterdir())) == len(others) + 3


def test_a_class_that_load_does_not_know_is_not_saved(tmp_path: Path) -> None:
    class Mine(GMF):
        pass

    with pytest.raises(ValueError, match="Mine is not one of GMF, MLP, NeuMF, MatrixFactorization"):
        Mine(3, 4).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match="model is a file: give the folder"):
        GMF(3, 4).save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_a_loaded_model_is_in_evaluation_mode_and_needs_nothing_of_the_file(folder: Path) -> None:
    model = ncf.load(folder)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights(folder).write_bytes(b"\0" * weights(folder).stat().st_size)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = GMF(3, 4).to(dtype)
    model.save(tmp_path)
    again = ncf.load(tmp_path)
    assert {value.dtype for value in again.state_dict().values()} == {dtype}
    assert torch.equal(again.head.weight, model.head.weight)


def test_a_new_model_replaces_the_old_one_whole(folder: Path) -> None:
    model = NeuMF(50, 70)
    model.save(folder)
    assert torch.equal(ncf.load(folder).head.weight, model.head.weight)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_meta_device_the_tables_stay_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = NeuMF(50, 70, factors=4, layers=(16, 8)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    model.user_ids = Vocabulary(list(range(50)))
    model.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    again = ncf.load("model", device="meta")
    monkeypatch.chdir("/")  # the folder was named by a relative path
    assert type(again) is NeuMF
    assert not again.training
    assert len(again.user_ids or ()) == 50
    for name, value in again.state_dict().items():
        expected = model.state_dict()[name]
        assert value.dtype == dtype
        assert value.shape == expected.shape
        assert value.is_meta == ("embedding_bags" in name)
        assert value.is_meta or torch.equal(value, expected)
    for table in model.embeddings.tables:
        part = torch.zeros(30, 3)
        again.embeddings.table_fillers[table.name](part, row=20, column=1)
        assert torch.equal(part, model.embeddings.weight(table.name)[20:50, 1:4].float())


def test_tables_without_values_are_not_saved(folder: Path) -> None:
    for model in (GMF(5, 7, device="meta"), ncf.load(folder, device="meta")):
        with pytest.raises(ValueError, match="on the meta device and its tables have no values: shard it"):
            model.save(folder)
    assert len(list(folder.iterdir())) == 2
    ncf.load(folder)
