from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import Interactions
from ncf.interactions import Vocabulary

ROWS = st.lists(
    st.tuples(st.integers(-5, 5), st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=30
)


def latest(rows: list[tuple]) -> list[tuple]:
    """The slow, obvious way: each pair's latest row, the last among equals, in file order."""
    best: dict[tuple, int] = {}
    for number, (user, item, time) in enumerate(rows):
        if (user, item) not in best or time >= rows[best[user, item]][2]:
            best[user, item] = number
    return [rows[number] for number in sorted(best.values())]


@given(ROWS)
def test_each_pair_once_at_its_latest_time_in_file_order(rows: list[tuple]) -> None:
    interactions = Interactions.from_arrays(*zip(*rows, strict=True))
    users = interactions.user_ids.decode(interactions.users)
    items = interactions.item_ids.decode(interactions.items)
    assert list(zip(users, items, interactions.timestamps.tolist(), strict=True)) == latest(rows)


@given(ROWS, st.integers(0, 4), st.integers(0, 4))
def test_minimum_counts_hold_at_once_and_keep_all_they_can(
    rows: list[tuple], least_user: int, least_item: int
) -> None:
    pairs = {(user, item) for user, item, _ in rows}
    while True:
        kept = {
            (user, item)
            for user, item in pairs
            if sum(u == user for u, _ in pairs) >= least_user
            and sum(i == item for _, i in pairs) >= least_item
        }
        if kept == pairs:
            break
        pairs = kept
    columns = list(zip(*rows, strict=True))[:2]
    if not pairs:
        with pytest.raises(ValueError, match="no interaction is left"):
            Interactions.from_arrays(*columns, min_user_count=least_user, min_item_count=least_item)
        return
    got = Interactions.from_arrays(*columns, min_user_count=least_user, min_item_count=least_item)
    names = zip(got.user_ids.decode(got.users), got.item_ids.decode(got.items), strict=True)
    assert set(names) == pairs
    assert len(got.user_ids) == got.num_users == len({user for user, _ in pairs})


@pytest.mark.parametrize(
    "table", [dict, pd.DataFrame, pl.DataFrame, pa.table], ids=["dict", "pandas", "polars", "pyarrow"]
)
def test_any_table_that_arrow_reads(table: Callable[[dict], Any]) -> None:
    columns = {"who": ["u", "v", "u"], "what": [30, 10, 20], "when": [3, 2, 1]}
    got = Interactions.from_table(table(columns), user="who", item="what", timestamp="when")
    assert got.users.tolist() == [0, 1, 0]
    assert got.items.tolist() == [2, 0, 1]
    assert got.timestamps.tolist() == [3, 2, 1]
    assert got.item_ids.decode(torch.arange(3)) == [10, 20, 30]


@pytest.mark.parametrize(
    "ids", [[5, 3, 5], np.array([5, 3, 5], dtype=np.uint8), torch.tensor([5, 3, 5]), ["5", "3", "5"]]
)
def test_ids_of_any_type(ids: Any) -> None:
    got = Interactions.from_arrays(ids, [1, 1, 2])
    assert got.users.tolist() == [1, 0, 1]
    assert [str(raw) for raw in got.user_ids.decode(torch.tensor([0, 1]))] == ["3", "5"]


def test_times_may_be_dates() -> None:
    got = Interactions.from_arrays([1, 1], [1, 2], pd.to_datetime(["2024-05-01", "2024-01-01"]).to_numpy())
    assert got.timestamps.argsort().tolist() == [1, 0]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "csv.gz"])
def test_files_and_globs(tmp_path: Path, ending: str) -> None:
    for number in (2, 1):
        frame = pd.DataFrame({"user": [f"u{number}"] * 2, "item": ["x", f"y{number}"], "t": [1, 2]})
        file = tmp_path / f"part-{number}.{ending}"
        if ending == "parquet":
            frame.to_parquet(file)
        else:
            frame.to_csv(file, index=False, sep="\t" if ending == "tsv" else ",")
    got = Interactions.from_files(tmp_path / f"part-*.{ending}", timestamp="t")
    assert got.user_ids.decode(got.users) == ["u1", "u1", "u2", "u2"]
    assert got.item_ids.decode(got.items) == ["x", "y1", "x", "y2"]


def test_a_file_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("7 3 5\n7 4 6\n")
    got = Interactions.from_files(
        tmp_path / "log.txt", columns=["user", "item", "t"], separator=" ", timestamp="t"
    )
    assert got.item_ids.decode(got.items) == [3, 4]


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,2\n3\n")
    with pytest.raises(
        ValueError, match=r"log\.csv is malformed: CSV parse error: Row #3: Expected 2 columns, got 1: 3"
    ):
        Interactions.from_files(tmp_path / "log.csv")


def test_missing_columns_files_and_types_that_differ(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,thing\n1,2\n")
    with pytest.raises(ValueError, match=r"column 'item' is missing: .*a\.csv has 'user', 'thing'"):
        Interactions.from_files(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="column 'user' is missing"):
        Interactions.from_table({"item": [1]})
    with pytest.raises(FileNotFoundError, match="no file matches"):
        Interactions.from_files(tmp_path / "b*.csv")
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    (tmp_path / "b.csv").write_text("user,item\nx,2\n")
    with pytest.raises(ValueError, match=r"b\.csv: column 'user' holds strings, in .*a\.csv whole numbers"):
        Interactions.from_files([tmp_path / "a.csv", tmp_path / "b.csv"])
    pq.write_table(pa.table({"user": [1]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column 'item' is missing"):
        Interactions.from_files(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"d\.parquet is malformed"):
        Interactions.from_files(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("users", "items", "times", "message"),
    [
        ([], [], None, "there are no interactions"),
        ([1, 2], [1], None, "users has 2 rows, items 1"),
        ([1, 2], [1, 2], [1], "users has 2 rows, timestamps 1"),
        ([1.0, 2.0], [1, 2], None, "users holds floating-point numbers"),
        ([1.0, float("nan")], [1, 2], None, r"users\[1\] is NaN or missing"),
        ([1, None], [1, 2], None, r"users\[1\] is missing"),
        ([1, "x"], [1, 2], None, "users cannot be read as one column"),
        ([True, False], [1, 2], None, "users is of type bool"),
        ([1, 2], [1, 2], ["soon", "later"], r"timestamps holds text \(timestamps\[0\] = 'soon'\)"),
        ([1, 2], [1, 2], [1, None], r"timestamps\[1\] is missing"),
    ],
)
def test_fault_17_bad_columns_are_one_clear_error(
    users: list, items: list, times: list | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Interactions.from_arrays(users, items, times)


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([0, 2], [0, 0], r"users\[1\] = 2 is out of range for num_users = 2"),
        ([0, 1], [0, -1], r"items\[1\] = -1 is out of range for num_items = 3"),
        ([0, 1], [0], "users has 2 rows, items 1"),
        ([0.0, 1.0], [0, 1], "users must be an int64 tensor"),
    ],
)
def test_numbered_ids_are_checked(users: list, items: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Interactions(torch.tensor(users), torch.tensor(items), None, 2, 3)


def test_csr_lists_each_users_items_ascending() -> None:
    got = Interactions(torch.tensor([2, 0, 2]), torch.tensor([4, 1, 3]), None, 4, 5)
    offsets, items = got.csr()
    assert offsets.tolist() == [0, 1, 1, 3, 3]
    assert items.tolist() == [1, 3, 4]
    assert got.item_counts().tolist() == [0, 1, 0, 1, 1]


def test_vocabulary() -> None:
    words = Vocabulary(["b", "a"])
    assert words.encode(["a", "b", "a"]).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"raw\[1\] = 'z' is not among the 2 known ids"):
        words.encode(["a", "z"])
    with pytest.raises(ValueError, match="'b' more than once"):
        Vocabulary(["b", "a", "b"])
    with pytest.raises(ValueError, match="raw holds strings, the vocabulary whole numbers"):
        Vocabulary([1, 2]).encode(["x"])
