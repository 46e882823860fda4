from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncf import Interactions, leave_one_out
from ncf.datasets import parquet, read_parquet, write_parquet

from ..conftest import random_interactions


def rows(part: Interactions) -> list[tuple]:
    times = [None] * len(part) if part.timestamps is None else part.timestamps.tolist()
    return list(zip(part.users.tolist(), part.items.tolist(), times, strict=True))


def by_user(whole: Interactions) -> list[tuple]:
    return sorted(rows(whole), key=lambda row: row[0])  # stable: within a user in file order


@settings(max_examples=40)  # each writes files
@given(
    pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), unique=True, min_size=1, max_size=50),
    spare_users=st.integers(0, 3),
    timed=st.booleans(),
    data=st.data(),
)
def test_every_user_exactly_once_for_any_number_of_parts_and_processes(
    tmp_path_factory: pytest.TempPathFactory, pairs: list, spare_users: int, timed: bool, data: st.DataObject
) -> None:
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    times = torch.arange(len(users)) % 4 if timed else None
    whole = Interactions(users, items, times, int(users.max()) + 1 + spare_users, 6)
    present = len(users.unique())
    num_parts = data.draw(st.integers(1, present), "num_parts")
    world_size = data.draw(st.integers(1, present), "world_size")
    folder = tmp_path_factory.mktemp("data") / "whole"
    write_parquet(whole, folder, num_parts=num_parts)
    shares = [read_parquet(folder, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [row for share in shares for row in rows(share)] == by_user(whole)
    owners = [set(share.users.tolist()) for share in shares]
    assert sum(map(len, owners)) == len(set.union(*owners)) == present
    assert {(share.num_users, share.num_items) for share in shares} == {(whole.num_users, 6)}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
def test_what_a_process_holds_out_is_what_the_whole_would(tmp_path: Path, world_size: int) -> None:
    whole = random_interactions(40, 60, 12)
    write_parquet(whole, tmp_path / "whole", num_parts=4)
    expected = leave_one_out(whole)
    splits = [
        leave_one_out(read_parquet(tmp_path / "whole", rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    for name in ("train", "validation", "test"):
        got = [row for split in splits for row in rows(getattr(split, name))]
        assert sorted(got) == sorted(rows(getattr(expected, name)))


@pytest.mark.parametrize(("num_parts", "world_size"), [(8, 4), (8, 3), (2, 5)])
def test_shares_are_about_equal(tmp_path: Path, num_parts: int, world_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 50, (2000,), generator=generator)
    users = torch.repeat_interleave(torch.arange(2000), counts)
    items = torch.cat([torch.arange(int(count)) for count in counts])
    write_parquet(Interactions(users, items, None, 2000, 50), tmp_path / "x", num_parts=num_parts)
    sizes = [
        len(read_parquet(tmp_path / "x", rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert max(sizes) < 1.1 * len(users) / world_size


def test_a_process_reads_only_the_files_of_its_users(tmp_path: Path) -> None:
    write_parquet(random_interactions(40, 60, 12), tmp_path / "x", num_parts=4)
    for number in (0, 1, 3):
        (tmp_path / "x" / f"part-{number:05}.parquet").unlink()
    assert read_parquet(tmp_path / "x", rank=2, world_size=4).users.unique().tolist() == list(range(20, 30))
    with pytest.raises(FileNotFoundError, match=r"part-00001\.parquet is missing"):
        read_parquet(tmp_path / "x", rank=1, world_size=4)


def test_vocabularies_are_the_whole_ones_on_every_rank(tmp_path: Path) -> None:
    whole = Interactions.from_arrays(["c", "a", "b"], [30, 10, 20])
    write_parquet(whole, tmp_path / "x", num_parts=3)
    for rank in range(3):
        share = read_parquet(tmp_path / "x", rank=rank, world_size=3)
        assert share.user_ids.decode(share.users) == ["abc"[rank]]
        assert share.item_ids.decode(torch.arange(3)) == [10, 20, 30]


def test_a_rank_with_no_users_is_an_error_on_every_rank(tmp_path: Path) -> None:
    gap = Interactions(torch.tensor([0, 3, 8]), torch.tensor([0, 0, 0]), None, 10, 1)
    write_parquet(gap, tmp_path / "x", num_parts=2)
    assert [read_parquet(tmp_path / "x", rank=r, world_size=3).users.tolist() for r in range(3)] == [
        [0],
        [3],
        [8],
    ]
    for rank in range(4):
        with pytest.raises(ValueError, match="world_size = 4: it has 3 groups of users"):
            read_parquet(tmp_path / "x", rank=rank, world_size=4)
    with pytest.raises(ValueError, match="rank = 2 is out of range for world_size = 2"):
        read_parquet(tmp_path / "x", rank=2, world_size=2)


def test_one_user_with_nearly_all_rows(tmp_path: Path) -> None:
    users = torch.tensor([0] + [1] * 1000 + [2, 3])
    whole = Interactions(users, torch.arange(len(users)), None, 4, len(users))
    write_parquet(whole, tmp_path / "x", num_parts=3)
    shares = [read_parquet(tmp_path / "x", rank=rank, world_size=4) for rank in range(4)]
    assert [len(share) for share in shares] == [1, 1000, 1, 1]
    users = torch.tensor([0, 1, 2] + [3] * 1000 + [4, 5, 6])
    write_parquet(Interactions(users, torch.arange(len(users)), None, 7, len(users)), tmp_path / "y")
    shares = [read_parquet(tmp_path / "y", rank=rank, world_size=4) for rank in range(4)]
    assert [len(share) for share in shares] == [3, 1000, 1, 2]


def test_bad_arguments(tmp_path: Path) -> None:
    whole = random_interactions(5, 9, 3)
    for num_parts in (0, 6):
        with pytest.raises(ValueError, match=f"num_parts = {num_parts}: choose 1 to 5"):
            write_parquet(whole, tmp_path / "x", num_parts=num_parts)
    write_parquet(whole, tmp_path / "x")
    with pytest.raises(FileExistsError, match="x exists: remove it"):
        write_parquet(whole, tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        read_parquet(tmp_path)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(parquet.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_parquet(random_interactions(5, 9, 3), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    write_parquet(
        Interactions.from_arrays([*"abcd"] * 2, [1, 1, 1, 1, 2, 2, 2, 2]), tmp_path / "x", num_parts=2
    )
    good = {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()}

    def damage(name: str, content: bytes, message: str) -> None:
        (tmp_path / "x" / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_parquet(tmp_path / "x")
        (tmp_path / "x" / name).write_bytes(good[name])

    part = good["part-00001.parquet"]
    damage("part-00001.parquet", part[:-7], r"part-00001\.parquet is damaged")
    damage("user_ids.parquet", good["user_ids.parquet"][:50], r"user_ids\.parquet is damaged")
    damage("manifest.json", b"{", "does not describe interactions")
    manifest = json.loads(good["manifest.json"])
    damage("manifest.json", json.dumps({**manifest, "format": 2}).encode(), "has format 2")
    damage("manifest.json", json.dumps({**manifest, "num_rows": 9}).encode(), "do not hold every user once")
    first, second = (part["groups"] for part in manifest["parts"])
    first[0][1], second[0][1] = first[0][1] + 1, second[0][1] - 1
    damage("manifest.json", json.dumps(manifest).encode(), "does not hold the rows that the manifest says")
    first[0][0] = 3
    damage("manifest.json", json.dumps(manifest).encode(), "do not hold every user once")


@pytest.mark.parametrize("name", ["../x/part-00000.parquet", "/etc/passwd", "user_ids.parquet", "", None])
def test_a_part_outside_the_folder_is_refused(tmp_path: Path, name: str | None) -> None:
    write_parquet(Interactions.from_arrays([*"ab"], [1, 2]), tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    manifest["parts"][0]["file"] = name
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json names .*: its parts are part-00000.parquet"):
        read_parquet(tmp_path / "x")


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    whole = Interactions.from_arrays([*"abcd"] * 3, [1] * 4 + [2] * 4 + [3] * 4, range(12))
    write_parquet(whole, tmp_path / "x")
    expected = rows(read_parquet(tmp_path / "x"))
    found: list[str] = []
    for file in (tmp_path / "x").glob("*.parquet"):
        good = file.read_bytes()
        for place in range(0, len(good), 17):
            flipped = bytearray(good)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            try:
                got = read_parquet(tmp_path / "x")
            except ValueError as error:
                found.append(str(error))
            else:
                assert rows(got) == expected
                assert got.user_ids.decode(torch.arange(4)) == [*"abcd"]
        file.write_bytes(good)
    assert len(found) > 40
    assert all("_ids.parquet" in message or "part-00000.parquet" in message for message in found)
