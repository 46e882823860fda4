from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncf import leave_one_out, whole_catalogue
from ncf.datasets import read_lists

LISTS = st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 99), unique=True), min_size=1, max_size=8)


def write(file: Path, lists: dict[int, list[int]]) -> Path:
    text = "".join(" ".join(map(str, [user, *items])) + "\n" for user, items in lists.items())
    content = text.encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


@settings(deadline=None)
@given(LISTS, LISTS, st.booleans(), st.sampled_from([0, 1, 10**12]))
def test_lists_come_back_under_their_own_ids(
    tmp_path_factory: pytest.TempPathFactory, train: dict, test: dict, zipped: bool, base: int
) -> None:
    train, test = (
        {user + base: [item + base for item in items] for user, items in lists.items()}
        for lists in (train, test)
    )
    folder, ending = tmp_path_factory.mktemp("lists"), ".txt.gz" if zipped else ".txt"
    files = [write(folder / f"{name}{ending}", lists) for name, lists in (("a", train), ("b", test))]
    if not any(train.values()) or not any(test.values()):
        with pytest.raises(ValueError, match="holds no items"):
            read_lists(*files)
        return
    split = read_lists(*files)
    assert split.fingerprint == split.test.fingerprint
    for part, lists in ((split.train, train), (split.test, test)):
        pairs = zip(part.user_ids.decode(part.users), part.item_ids.decode(part.items), strict=True)
        assert list(pairs) == [(user, item) for user, items in lists.items() for item in items]
    catalogue = whole_catalogue(split)
    held = catalogue.positives.split(catalogue.held_out_offsets.diff().tolist())
    for user, items in zip(split.test.user_ids.decode(catalogue.users), held, strict=True):
        assert sorted(split.test.item_ids.decode(items)) == sorted(test[user])
    assert len(read_lists(files[0])) == len(split.train)


def test_the_order_of_a_line_is_the_time_and_the_last_of_two_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 10 11 12 10\r\n\n2\t11 12\t13 \n")
    split = leave_one_out(read_lists(tmp_path / "a.txt"))
    assert split.test.item_ids.decode(split.test.items) == [10, 13]


def test_three_files_are_three_sets(tmp_path: Path) -> None:
    for name, item in (("train", 1), ("valid", 2), ("test", 3)):
        (tmp_path / name).write_text(f"0 {item}\n")
    split = read_lists(tmp_path / "train", tmp_path / "test", validation=tmp_path / "valid")
    assert [part.item_ids.decode(part.items) for part in split.sets] == [[1], [2], [3]]
    with pytest.raises(ValueError, match="validation is given without test"):
        read_lists(tmp_path / "train", validation=tmp_path / "valid")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 1\n0 x\n", r"a\.txt, line 2 is malformed, .* '0 x'"),
        (b"0 1\n0 -1\n", r"a\.txt, line 2 is malformed"),
        (b"0 1.5\n", r"a\.txt, line 1 is malformed"),
        (b"0 99999999999999999999\n", r"a\.txt, line 1 is malformed"),
        (b"", r"a\.txt holds no items"),
        (b"0\n1\n", r"a\.txt holds no items"),
        (b"\xff\xfe0 1\n", r"a\.txt is damaged"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_lists(tmp_path / "a.txt")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content)[:-3])
    with pytest.raises(ValueError, match=r"a\.txt\.gz is damaged"):
        read_lists(tmp_path / "a.txt.gz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_lists(tmp_path / "b.txt")
