from __future__ import annotations

import json
import operator
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import ncf
from ncf import ALS, EASE, GMF, HashedVocabulary, Interactions, ItemKNN, ItemPop, NeuMF, Spectral
from ncf.data.interactions import Vocabulary
from ncf.models import register, saving
from ncf.models.loading import load_saved
from ncf.utils.files import write_text
from ncf.utils.row_formats import dequantize_rows, quantize_rows
from tests.conftest import random_interactions

from .folders import as_format_3, describe, description, file_of, rehash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    GMF(5, 7, factors=3).save(tmp_path / "model")
    return tmp_path / "model"


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
    file = file_of(folder)
    good = load_file(file)
    save_file({name: tensor for name, tensor in good.items() if name != "head.bias"}, file)
    rehash(folder)
    with pytest.raises(ValueError, match=r"missing \['head.bias'\]"):
        ncf.load(folder, device=device)
    save_file({**good, "head.scale": torch.ones(1)}, file)
    rehash(folder)
    with pytest.raises(ValueError, match=r"unexpected \['head.scale'\]"):
        ncf.load(folder, device=device)
    save_file({**good, "head.weight": torch.ones(1, 9)}, file)
    rehash(folder)
    with pytest.raises(ValueError, match=r"head.weight has shape \(1, 9\), config.json describes \(1, 3\)"):
        ncf.load(folder, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_damaged_files_are_one_clear_error(folder: Path, device: str) -> None:
    file = file_of(folder)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"\.safetensors has \d+ bytes, not \d+: copy it again"):
        ncf.load(folder, device=device)
    rehash(folder)
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


def named(name: object) -> dict:
    return {"files": {"model": {"name": name, "bytes": 1, "sha256": ""}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (named("../secret.safetensors"), "outside its folder"),
        (named("/etc/passwd"), "outside its folder"),
        (named(".."), "outside its folder"),
        (named(""), "outside its folder"),
        (named("a/b.safetensors"), "outside its folder"),
        (named("a" * 300), "names a file that cannot be"),
        (named("a\0b"), "outside its folder"),
        (named(5), "does not describe a model"),
        (named(None), "does not describe a model"),
        ({"files": {"model": "weights"}}, "does not describe a model"),
        ({"files": ["model"]}, "does not describe a model"),
        ({"files": {}}, "does not describe a model"),
        ({"files": {"code": {}}}, "does not describe a model"),
        ({"format": 99}, "has format 99, .*: update ncf"),
        ({"format": 1}, "has format 1, .*: save the model again"),
        ({"rows": "int2"}, "rows' format 'int2': update ncf"),
        ({"model": "Popen"}, "names the model 'Popen'"),
        ({"model": "EmbeddingModel"}, "names the model 'EmbeddingModel'"),
        ({"model": ["GMF"]}, "does not describe a model"),
        ({"config": None}, "does not describe a model"),
        ({"config": [5, 7]}, "does not describe a model"),
        ({"record": 5}, "does not describe a model"),
        ({"config": {"num_users": 5, "num_items": 7, "device": "cpu"}}, "cannot be built"),
        ({"config": {"num_users": 5, "num_items": 7.5}}, "cannot be built"),
        ({"config": {"num_users": 10**18, "num_items": 7}}, "cannot be built"),
        ({"config": {"num_users": 10**30, "num_items": 7}}, "cannot be built"),
        ({"config": {"num_users": 5, "num_items": 7, "seed": float("inf")}}, "cannot be built"),
        ({"model": "MLP", "config": {"num_users": 5, "num_items": 7, "layers": "wide"}}, "cannot be built"),
        (
            {"model": "MLP", "config": {"num_users": 5, "num_items": 7, "layers": [2] * 9**5}},
            "more tensors than",
        ),
        ({"model": "ItemPop", "config": {"num_users": 5, "num_items": 10**30}}, "cannot be built"),
        ({"model": "EASE", "config": {"num_users": 5, "num_items": 7}}, "cannot be built"),
        ({"config": {"num_users": 5, "colour": 3}}, "cannot be built"),
    ],
)
def test_a_description_that_cannot_be_trusted_is_refused(folder: Path, change: dict, message: str) -> None:
    describe(folder, description(folder) | change)
    with pytest.raises(ValueError, match=message):
        ncf.load(folder)


@pytest.mark.parametrize("key", ["format", "model", "config", "files", "versions", "record"])
def test_a_description_without_a_part_is_refused(folder: Path, key: str) -> None:
    describe(folder, {name: value for name, value in description(folder).items() if name != key})
    with pytest.raises(ValueError, match="does not describe a model"):
        ncf.load(folder)


def test_a_description_that_was_changed_is_refused(folder: Path) -> None:
    content = description(folder)
    content["config"]["seed"] = 1
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config.json is damaged: its SHA-256 is"):
        ncf.load(folder)
    content["config"]["seed"] = 0  # as it was, with other spaces and in another order
    (folder / "config.json").write_text(json.dumps(dict(reversed(content.items()))))
    ncf.load(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'"GMF"', b"\xff\xfe", b"[" * 10_000, b"9" * 5000, b" " * 2**21]
)
def test_a_description_that_is_something_else_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="does not describe a model"):
        ncf.load(folder)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_that_are_no_real_numbers_are_refused(folder: Path, device: str) -> None:
    file = file_of(folder)
    good = load_file(file)
    save_file(good | {"head.bias": good["head.bias"].double()}, file)
    rehash(folder)
    with pytest.raises(
        ValueError, match=r"head.bias holds torch.float64, .*: save the model again, in one precision"
    ):
        ncf.load(folder, device=device)
    save_file({name: tensor.to(torch.int64) for name, tensor in good.items()}, file)
    rehash(folder)
    with pytest.raises(ValueError, match=r"holds torch.int64, not floating-point numbers"):
        ncf.load(folder, device=device)


@pytest.mark.parametrize(
    "raw", [Vocabulary(["c", "ä", "b"]), Vocabulary([5, 7, 9]), Vocabulary([9, 7, 5]), HashedVocabulary(3)]
)
def test_a_folder_of_format_3_is_read(tmp_path: Path, raw: Vocabulary) -> None:
    model = GMF(3, 4)
    model.user_ids, model.item_ids = raw, Vocabulary(["tea", "milk", "rice", ""])
    model.save(tmp_path)
    as_format_3(tmp_path)
    assert len(list(tmp_path.glob("*_ids-*.parquet"))) == 2
    again = ncf.load(tmp_path)
    for ids, saved in ((again.user_ids, raw), (again.item_ids, model.item_ids)):
        assert ids is not None
        assert (type(ids), ids.fingerprint) == (type(saved), saved.fingerprint)
    again.save(tmp_path)
    assert [*{file.suffix for file in tmp_path.glob("*_ids-*")}] == [".safetensors"]


def refuse_damage(folder: Path, file: Path, content: bytes, name: str, message: str) -> None:
    """Expect an error of the file's size and, where the description was made to fit, of its content."""
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes, not"):
        ncf.load(folder)
    rehash(folder)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        ncf.load(folder)


def test_a_vocabulary_that_is_damaged_or_too_long_is_refused(tmp_path: Path) -> None:
    model = GMF(3, 4)
    model.user_ids = Vocabulary([4, 5, 6])
    model.save(tmp_path)
    file = file_of(tmp_path, "user_ids")
    for bad in (file.read_bytes()[:-7], b""):
        refuse_damage(tmp_path, file, bad, r"user_ids-\w+.safetensors", "is not a complete safetensors file")
    not_divided, text = "its offsets do not divide its text", torch.tensor([*b"aab"], dtype=torch.uint8)
    for tensors, message in (
        ({"name": torch.tensor([1])}, "is not a vocabulary: it holds name"),
        ({"hashed": torch.tensor([4])}, "is not a vocabulary: it holds hashed"),
        ({"numbers": torch.tensor([1]), "text": text}, "is not a vocabulary: it holds numbers, text"),
        ({"numbers": torch.arange(4)}, "has 4 ids for the model's 3"),
        ({"numbers": torch.tensor([5, 5])}, "user_ids.* holds 5 more than once"),
        ({"numbers": torch.tensor([5.5])}, "numbers is torch.float32"),
        ({"numbers": torch.tensor([[5]])}, r"numbers is torch.int64, \(1, 1\)"),
        ({"offsets": torch.tensor([0, 1, 2, 3]), "text": text}, "holds 'a' more than once"),
        ({"offsets": torch.tensor([0, 2, 1, 3]), "text": text}, not_divided),
        ({"offsets": torch.tensor([0, 1, 2]), "text": text}, not_divided),
        ({"offsets": torch.tensor([1, 3]), "text": text}, not_divided),
        ({"offsets": torch.tensor([0, 1, 9]), "text": text}, not_divided),
        ({"offsets": torch.tensor([], dtype=torch.int64), "text": text}, not_divided),
        ({"offsets": torch.tensor([0, 3]), "text": text | 0x80}, "is not a vocabulary .*utf-8"),
        (
            {"offsets": torch.tensor([0, 1, 2, 3]), "text": torch.tensor([98, 97, 255], dtype=torch.uint8)},
            "is not a vocabulary .*UTF8",
        ),
    ):
        save_file(tensors, file)
        rehash(tmp_path)
        with pytest.raises(ValueError, match=message):
            ncf.load(tmp_path)


def test_a_vocabulary_of_format_3_that_is_damaged_or_too_long_is_refused(tmp_path: Path) -> None:
    model = GMF(3, 4)
    model.user_ids = Vocabulary([4, 5, 6])
    model.save(tmp_path)
    as_format_3(tmp_path)
    file = file_of(tmp_path, "user_ids")
    for bad in (file.read_bytes()[:-7], b"", b"PAR1"):
        refuse_damage(tmp_path, file, bad, r"user_ids-\w+.parquet", "is damaged")
    for table, message in (
        ({"name": ["a"]}, "is not a vocabulary: it holds name"),
        ({"id": [1, 2, 3, 4]}, "has 4 rows for the model's 3"),
        ({"id": [7] * 10**7}, "has 10000000 rows for the model's 3"),
        ({"id": ["x" * 10**7] * 3}, "unpacks to"),
        ({"id": ["a", "a"]}, "holds an id more than once"),
        ({"id": [5, 5]}, "user_ids.* holds 5 more than once"),
        ({"id": [5.5, 6.5]}, "user_ids.* is not a vocabulary"),
        ({"id": [5, None]}, "user_ids.* is not a vocabulary"),
        ({"id": pa.array([b"\xff"]).view(pa.string())}, "user_ids.* is damaged"),
    ):
        pq.write_table(pa.table(table), file, compression="zstd")
        rehash(tmp_path)
        with pytest.raises(ValueError, match=message):
            ncf.load(tmp_path)


def test_fault_15_nothing_in_the_folder_is_a_pickle(tmp_path: Path) -> None:
    model = GMF(3, 4)
    model.user_ids, model.item_ids = Vocabulary(["a", "b", "c"]), Vocabulary([7, 8, 9, 10])
    model.save(tmp_path)
    kinds = {".safetensors": 3, ".json": 1}
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


@pytest.mark.parametrize("function", ["write_tensors", "file_hash", "pq.write_table", "write_text"])
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
    titles = {"title": list("ABCDEFG")}
    monkeypatch.setattr(f"ncf.models.saving.{function}", full_disk)
    if calls and function in ("pq.write_table", "write_text"):  # called once
        new.save(folder, item_columns=titles)
        assert len(list(folder.iterdir())) == 5
    else:
        with pytest.raises(OSError, match="no space"):
            new.save(folder, item_columns=titles)
        assert len(list(folder.iterdir())) == 2  # what the failure wrote is gone
        again = ncf.load(folder)
        assert type(again) is GMF
        assert torch.equal(again.head.weight, old.head.weight)
        assert again.user_ids is None
        monkeypatch.undo()
        new.save(folder, item_columns=titles)
        assert len(list(folder.iterdir())) == 5


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

    with pytest.raises(
        ValueError, match=r"Mine is not one of GMF, .*: decorate the class with ncf.models.register"
    ):
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
    file_of(folder).write_bytes(b"\0" * file_of(folder).stat().st_size)
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


ROUNDS = int(os.environ.get("NCF_SAVER_ROUNDS", "10"))


def saver(number: int) -> GMF:
    """One of two models whose weights, sizes and ids all differ."""
    model = GMF(2000 + number, 300, seed=number)
    model.user_ids = Vocabulary([f"{number}-{user}" for user in range(2000 + number)])
    model.item_ids = Vocabulary(list(range(number, 300 + number)))
    return model


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_two_processes_that_save_to_one_folder_the_last_wins_whole(tmp_path: Path) -> None:
    models = [saver(0), saver(1)]
    go, done, children = [os.pipe() for _ in models], [os.pipe() for _ in models], []
    for number, model in enumerate(models):
        child = os.fork()
        if not child:
            while os.read(go[number][0], 1) == b"s":
                try:
                    model.save(tmp_path)
                    os.write(done[number][1], b"+")
                except BaseException:
                    os.write(done[number][1], b"-")
            os._exit(0)
        children.append(child)
    winners = set()
    for _ in range(ROUNDS):
        for _, start in go:
            os.write(start, b"s")
        loads = 0
        while loads < 2:  # also while they save
            loads += 1
            if (tmp_path / "config.json").exists():
                ncf.load(tmp_path)
        assert [os.read(end, 1) for end, _ in done] == [b"+", b"+"]
        again = ncf.load(tmp_path)
        number = again.config["seed"]
        winners.add(number)
        for name, value in models[number].state_dict().items():
            assert torch.equal(again.state_dict()[name], value)
        for name in ("user_ids", "item_ids"):
            assert getattr(again, name).values.equals(getattr(models[number], name).values)
    for _, start in go:
        os.write(start, b"x")
    for child in children:
        os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 4  # nothing is left of either
    assert ROUNDS < 100 or winners == {0, 1}


def test_an_interruption_after_the_description_was_replaced_leaves_the_new_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        write_text(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    new = NeuMF(5, 7)
    monkeypatch.setattr(saving, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save(folder)
    assert torch.equal(ncf.load(folder).head.weight, new.head.weight)


def test_a_full_disk_is_the_documented_error(folder: Path) -> None:
    """A limit of the file's size stands for the full disk: it is the system that fails the write."""
    code = f"""
import resource, signal, ncf
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    ncf.GMF(500, 700).save({str(folder)!r})
except OSError as error:
    print(type(error).__name__, error.errno, error.filename.split("/")[-1][:6])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "OSError 27 model-\n", done.stderr
    assert ncf.load(folder).num_users == 5
    assert len(list(folder.iterdir())) == 2


@register
class Doubled(GMF):
    """Two factors for each that is asked for, and a weight of its own."""

    def __init__(self, num_users: int, num_items: int, *, factors: int = 2, device: Any = None) -> None:
        super().__init__(num_users, num_items, factors=2 * factors, device=device)
        self.config = {"num_users": num_users, "num_items": num_items, "factors": factors}
        self.extra = torch.nn.Linear(3, 2, dtype=torch.float32)
        self.register_buffer("scale", torch.full((2,), 5.0, dtype=torch.float32))


def test_a_registered_class_of_ones_own_is_saved_and_loaded(tmp_path: Path) -> None:
    model = Doubled(5, 7, factors=3)
    model.save(tmp_path)
    again = ncf.load(tmp_path)
    assert type(again) is Doubled
    assert again.embeddings.weight("user_gmf").shape == (5, 6)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    code = f"import ncf; ncf.load({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "names the model 'Doubled': known are GMF" in done.stderr
    assert "Import the module that registers a class of your own" in done.stderr


def test_what_cannot_be_registered_or_built_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is not a subclass of EmbeddingModel"):
        register(torch.nn.Linear)
    with pytest.raises(ValueError, match="another model is called GMF: rename the class"):
        register(type("GMF", (GMF,), {}))
    with pytest.raises(ValueError, match="another model is called Doubled"):
        register(type("Doubled", (GMF,), {"__module__": "elsewhere"}))
    assert register(Doubled) is Doubled  # once more, as when a notebook's cell runs again
    model = Doubled(5, 7)
    model.config["factors"] = {1, 2}
    with pytest.raises(ValueError, match="is nothing that JSON can hold"):
        model.save(tmp_path)


def test_a_model_in_two_precisions_is_refused_before_it_replaces_one(tmp_path: Path) -> None:
    """`load` refuses such a folder. A layer of one's own is float64 where a script makes that the default."""
    model = Doubled(5, 7)
    model.save(tmp_path)
    model.extra.double()
    with pytest.raises(ValueError, match=r"extra.bias holds torch.float64.*such as model.float\(\)"):
        model.save(tmp_path)
    assert type(ncf.load(tmp_path)) is Doubled
    model.float().save(tmp_path)
    ncf.load(tmp_path)
    model.embeddings.double()  # a format of their own is named for the tables' rows
    model.save(tmp_path, rows="float32")
    ncf.load(tmp_path)


class Forgetful(GMF):
    def __init__(self, num_users: int, num_items: int, *, device: Any = None, **_: Any) -> None:
        super().__init__(num_users, num_items, device=device)
        self.register_buffer("unsaved", torch.ones(1), persistent=False)


def test_a_value_that_is_not_in_the_state_is_named(tmp_path: Path) -> None:
    register(Forgetful)(5, 7).save(tmp_path)
    with pytest.raises(ValueError, match=r"unsaved of Forgetful is not saved: keep it in state_dict\(\)"):
        ncf.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ItemPop, {}),
        (ItemKNN, {}),
        (EASE, {}),
        (EASE, {"neighbours": 4}),
        (ALS, {"factors": 4}),
        (Spectral, {}),
    ],
)
def test_baselines_are_saved_and_loaded_as_every_model(
    tmp_path: Path, kind: Any, settings: dict[str, int]
) -> None:
    bought = random_interactions(20, 30, 6)
    train = Interactions.from_arrays([f"u{user}" for user in bought.users.tolist()], bought.items)
    if kind is ALS:
        pytest.importorskip("implicit")
    model = kind(train, **settings)
    model.save(tmp_path)
    again: Any = ncf.load(tmp_path)
    assert type(again) is kind
    assert again.config == model.config
    users, items = torch.arange(train.num_users), torch.arange(train.num_items).expand(train.num_users, -1)
    assert torch.equal(again.score(users, items), model.score(users, items))
    lists = [ncf.recommend(which, ["u3", "u5"], k=4, exclude=train).items for which in (model, again)]
    assert lists[0] == lists[1]
    with pytest.raises(ValueError, match="has no embedding tables: leave out rows = 'int8'"):
        model.save(tmp_path, rows="int8")


@pytest.mark.parametrize("rows", ["float32", "bfloat16", "int8", "int4"])
def test_rows_in_other_formats_are_read_as_their_numbers(tmp_path: Path, rows: str) -> None:
    model = NeuMF(50, 70, factors=12, layers=(20, 8), init_std=0.5)
    model.save(tmp_path, rows=rows)
    again, later = ncf.load(tmp_path), ncf.load(tmp_path, device="meta")
    for name, value in model.state_dict().items():
        loaded = again.state_dict()[name]
        assert loaded.dtype == torch.float32
        if "embedding_bags" not in name:
            assert torch.equal(loaded, value)
            continue
        expected = dequantize_rows(quantize_rows(value, rows), rows, value.shape[1])
        assert torch.equal(loaded, expected)
        part = torch.zeros(9, 3)
        table = name.split(".")[3]
        later.embeddings.table_fillers[table](part, row=20, column=5)
        assert torch.equal(part, expected[20:29, 5:8])
    with pytest.raises(ValueError, match="rows = 'int3': choose one of"):
        model.save(tmp_path, rows="int3")


@pytest.mark.parametrize("rows", [None, "float32", "int8", "int4"])
def test_a_folder_of_format_2_is_read(tmp_path: Path, rows: str | None) -> None:
    import ncf.utils.torchrec_import  # loads FBGEMM's operators

    model = NeuMF(50, 70, factors=12, layers=(24, 8), init_std=0.5)
    model.save(tmp_path)
    tensors, ops = load_file(file_of(tmp_path)), torch.ops.fbgemm
    expected = dict(tensors)
    for name in tensors:
        if "embedding_bags" in name and rows == "int8":
            tensors[name] = ops.FloatToFused8BitRowwiseQuantized(tensors[name])
            expected[name] = ops.Fused8BitRowwiseQuantizedToFloat(tensors[name])
        if "embedding_bags" in name and rows == "int4":
            tensors[name] = ops.FloatToFusedNBitRowwiseQuantizedSBHalf(tensors[name], 4)
            expected[name] = ops.FusedNBitRowwiseQuantizedSBHalfToFloat(tensors[name], 4)
    save_file(tensors, file_of(tmp_path))
    rehash(tmp_path)
    describe(tmp_path, description(tmp_path) | {"format": 2, "rows": rows})
    again, later = ncf.load(tmp_path).state_dict(), ncf.load(tmp_path, device="meta")
    for name, value in expected.items():
        torch.testing.assert_close(again[name], value)
    part = torch.zeros(9, 12)
    later.embeddings.table_fillers["item_gmf"](part, row=20, column=0)
    assert torch.equal(part, again["embeddings.ebc.embedding_bags.item_gmf.weight"][20:29])


def test_what_answers_need_is_saved_with_the_model(tmp_path: Path) -> None:
    bought = Interactions.from_arrays(["ann", "ann", "bob"], [30, 10, 20])
    model = GMF(2, 3)
    model.user_ids, model.item_ids = bought.user_ids, bought.item_ids
    record = {"metrics": {"hr@10": [0.5, 0.4, 0.6]}, "epochs": 3}
    model.save(
        tmp_path,
        seen=bought.csr(),
        popularity=torch.tensor([3.0, 2.0, 1.0]),
        item_columns={"title": ["Alien", "Brazil", "Casablanca"], "year": [1979, 1985, 1942]},
        record=record,
    )
    saved = load_saved(tmp_path)
    assert saved.seen is not None
    assert [part.tolist() for part in saved.seen] == [part.tolist() for part in bought.csr()]
    assert {part.dtype for part in saved.seen} == {torch.int64}
    assert saved.popularity is not None
    assert saved.popularity.tolist() == [3.0, 2.0, 1.0]
    assert saved.item_columns().to_pydict() == {
        "title": ["Alien", "Brazil", "Casablanca"],
        "year": [1979, 1985, 1942],
    }
    assert saved.record == saved.model.record == record
    assert saved.versions["ncf"] == ncf.__version__
    saved.model.save(tmp_path / "again")  # the record stays with the model
    assert load_saved(tmp_path / "again").record == record
    assert load_saved(tmp_path / "again").seen is None
    for wrong, message in (
        ({"seen": (torch.tensor([0, 1]), torch.tensor([0]))}, "seen is not 2 lists"),
        ({"seen": (torch.tensor([0, 1, 2]), torch.tensor([0, 3]))}, "seen holds a number outside 0 to 2"),
        ({"popularity": torch.ones(4)}, "popularity has shape"),
        ({"item_columns": {"title": ["Alien"]}}, "item_columns has 1 rows: give one for each of 3 items"),
        ({"record": {"when": object()}}, "nothing that JSON can hold"),
    ):
        with pytest.raises(ValueError, match=message):
            model.save(tmp_path / "wrong", **wrong)
    assert not (tmp_path / "wrong").exists()


def test_tables_mapped_from_the_file_give_the_same_answers_and_leave_the_file_alone(folder: Path) -> None:
    before = file_of(folder).read_bytes()
    mapped, copied = ncf.load(folder, mmap=True), ncf.load(folder)
    users, items = torch.arange(5), torch.arange(7).expand(5, -1)
    assert torch.equal(mapped.score(users, items), copied.score(users, items))
    with torch.no_grad():
        mapped.embeddings.weight("user_gmf").add_(1)
    assert file_of(folder).read_bytes() == before
    assert torch.equal(ncf.load(folder, mmap=True).score(users, items), copied.score(users, items))
