"""Folders that are damaged in every way: an error that names the file, or exactly the right model.

``NCF_DAMAGED_FOLDERS=2000 pytest tests/models/test_damage.py -s`` tries more of them and prints the costs.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from ncf import NeuMF
from ncf.data.vocabulary import Vocabulary
from ncf.models.loading import SavedModel, load_saved

from .folders import as_format_3, describe, description, file_of, rehash

PURPOSES = ("model", "user_ids", "item_ids", "answers", "item_columns")
FOLDERS = int(os.environ.get("NCF_DAMAGED_FOLDERS", "65"))
MOST_BYTES, MOST_SECONDS = 200e6, 1.0


def save_one(folder: Path, rows: str | None) -> None:
    model = NeuMF(60, 80, factors=8, layers=(16, 8, 4), init_std=0.5)
    model.user_ids = Vocabulary([f"user {number}" for number in range(60)])
    model.item_ids = Vocabulary(list(range(100, 180)))
    offsets = torch.arange(0, 61 * 4, 4)
    model.save(
        folder,
        rows=rows,
        seen=(offsets, torch.arange(240) % 80),
        popularity=torch.arange(80.0),
        item_columns={"title": [f"Film {number}" for number in range(80)]},
        record={"hr@10": 0.5},
    )


def content(saved: SavedModel) -> bytes:
    """All that was loaded."""
    model, seen = saved.model, saved.seen
    assert seen is not None
    assert saved.popularity is not None
    return pickle.dumps(
        (
            {name: value.tolist() for name, value in model.state_dict().items()},
            model.config,
            model.user_ids.values.to_pylist(),
            model.item_ids.values.to_pylist(),
            [part.tolist() for part in (*seen, saved.popularity)],
            saved.item_columns().to_pydict(),
            saved.record,
        )
    )


def a_file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.iterdir()))


def flip(folder: Path, chance: random.Random) -> None:
    file = a_file(folder, chance)
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def truncate(folder: Path, chance: random.Random) -> None:
    file = a_file(folder, chance)
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def lengthen(folder: Path, chance: random.Random) -> None:
    with a_file(folder, chance).open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 99)))


def zero_a_range(folder: Path, chance: random.Random) -> None:
    file = a_file(folder, chance)
    data = bytearray(file.read_bytes())
    start = chance.randrange(len(data))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    file.write_bytes(data)


def swap(folder: Path, chance: random.Random) -> None:
    one, other = (file_of(folder, purpose) for purpose in chance.sample(PURPOSES, 2))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def swap_and_rehash(folder: Path, chance: random.Random) -> None:
    one, other = chance.choice([("model", "answers"), ("model", "user_ids"), ("item_columns", "item_ids")])
    files = file_of(folder, one), file_of(folder, other)
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    rehash(folder)


def remove(folder: Path, chance: random.Random) -> None:
    file = a_file(folder, chance)
    file.unlink()
    chance.choice([lambda: None, file.mkdir, lambda: file.symlink_to(file), file.touch])()


def another_entry(folder: Path, chance: random.Random) -> None:
    """A value of the description, without its hash."""
    changed = description(folder)
    part = chance.choice([changed, changed["config"], changed["files"], changed["files"]["model"]])
    key = chance.choice(sorted(part))
    part[key] = chance.choice([None, 0, -1, 3, "x", [], {}, 1e308, [[]]])
    (folder / "config.json").write_text(json.dumps(changed))


def another_config(folder: Path, chance: random.Random) -> None:
    """A value of the model's config, with the right hash: what a person edits, or worse."""
    changed = description(folder)
    key = chance.choice(["num_users", "num_items", "factors", "layers", "dropout", "seed"])
    whole = [
        None,
        0,
        -1,
        3,
        10**9,
        10**18,
        10**30,
        "x",
        [],
        {},
        1e308,
        [[]],
        float("nan"),
        float("inf"),
        True,
    ]
    lists = [[30000, 15000], [16, 8], [16], [2] * 10**5, [10**9, 10**9], [3, 2], [16, 8.5, 4], "16"]
    changed["config"][key] = chance.choice(lists if key == "layers" else whole)
    if key in ("dropout", "seed"):  # another valid one is no damage, but another model
        changed["config"][key] = chance.choice([None, "x", [], {}, 2.5, float("nan"), float("inf")])
    describe(folder, changed)


def another_tensor(folder: Path, chance: random.Random) -> None:
    """Of another shape or type, missing or too many."""
    file = file_of(folder, chance.choice(["model", "answers", "user_ids", "item_ids"]))
    tensors = load_file(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = chance.choice(sorted(tensors))
    changes: list[Callable[[], Any]] = [
        lambda: tensors.pop(name),
        lambda: tensors.update({name + "x": tensors[name].clone()}),
        lambda: tensors.update({name: tensors[name][:-1].clone()}),
        lambda: tensors.update({name: tensors[name][None].clone()}),
        lambda: tensors.update({name: torch.zeros(0)}),
        lambda: tensors.update({name: torch.zeros(tensors[name].shape, dtype=torch.complex64)}),
        lambda: tensors.update({name: torch.zeros(tensors[name].shape, dtype=torch.bool)}),
        lambda: tensors.update({name: torch.zeros(2**20)}),
    ]
    if name == "numbers":  # the last row may have no id
        del changes[2]
    chance.choice(changes[name == "popularity" :])()  # without popularity a folder is a good one
    save_file(tensors, file)
    rehash(folder)


def another_table(folder: Path, chance: random.Random) -> None:
    """Ids of format 3 that are too many, doubled, missing or of no type, and columns of other lengths."""
    as_format_3(folder)
    tables: list[dict[str, Any]] = [
        {"id": [7] * 10**7},
        {"id": [1, 1]},
        {"id": [1, None]},
        {"id": [0.5, 1.5]},
        {"id": ["a" * 10**6] * 60},
        {"id": [["a"]]},
        {"name": ["a"]},
        {"id": pa.array([b"\xff\xfe"]).view(pa.string())},
        {"id": [1, 2], "more": [1, 2]},
    ]
    pq.write_table(pa.table(chance.choice(tables)), file_of(folder, chance.choice(["user_ids", "item_ids"])))
    rehash(folder)


def nonsense(folder: Path, chance: random.Random) -> None:
    texts = [b"[" * 10**5, b"9" * 5000, b"{" + b'"a":' * 10**4, b"\xff" * 99, b" " * 2**21, b'{"format": 2}']
    (folder / "config.json").write_bytes(chance.choice(texts))


DAMAGES = (
    flip,
    flip,
    truncate,
    lengthen,
    zero_a_range,
    swap,
    swap_and_rehash,
    remove,
    another_entry,
    another_config,
    another_tensor,
    another_table,
    nonsense,
)


def attempt(folder: Path, expected: bytes) -> tuple[str, float, int]:
    """Load in a process of its own: what came of it, the seconds of its CPU, and the bytes that it took more."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        peak = Path("/proc/self/clear_refs")
        try:
            peak.write_text("5")  # the peak counts from here
            before, start = memory("VmRSS"), time.process_time()
            try:
                outcome = "right" if content(load_saved(folder)) == expected else "wrong values"
            except (ValueError, OSError) as error:
                outcome = "refused" if str(folder) in str(error) else f"no file is named: {error!r}"
            except BaseException as error:
                outcome = f"raw: {error!r}"
            result = (outcome, time.process_time() - start, memory("VmHWM") - before)
            os.write(writing, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(answer) if answer else ("the process died", 0.0, 0)


def memory(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_damaged_folder_is_refused_by_name_or_loads_the_right_model(tmp_path: Path) -> None:
    good = {}
    for rows in (None, "int8"):
        save_one(tmp_path / str(rows), rows)
        good[rows] = content(load_saved(tmp_path / str(rows)))
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest, largest = 0.0, 0
    for number in range(FOLDERS):
        chance = random.Random(number)
        rows = chance.choice([None, "int8"])
        damage = DAMAGES[number % len(DAMAGES)]
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / str(rows), folder)
        damage(folder, chance)
        outcome, seconds, size = attempt(folder, good[rows])
        assert outcome in ("refused", "right"), f"{damage.__name__}, {number}: {outcome}"
        assert size < MOST_BYTES, f"{damage.__name__}, {number}: {size} bytes"
        outcomes[damage.__name__, outcome] += 1
        slowest, largest = max(slowest, seconds), max(largest, size)
        shutil.rmtree(folder)
    if "NCF_DAMAGED_FOLDERS" in os.environ:
        print(f"\n{FOLDERS} folders: most CPU time {slowest:.2f} s, most memory {largest / 1e6:.0f} MB")
        print(
            "\n".join(
                f"{damage:20} {outcome:8} {count}" for (damage, outcome), count in sorted(outcomes.items())
            )
        )
        assert slowest < MOST_SECONDS
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "refused") > FOLDERS * 0.9
