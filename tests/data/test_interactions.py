from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ncf import Interactions
from ncf.data.vocabulary import Vocabulary

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


def test_many_duplicates_against_pandas() -> None:
    generator = torch.Generator().manual_seed(0)
    users, items, times = (torch.randint(0, high, (20_000,), generator=generator) for high in (300, 200, 50))
    frame = pd.DataFrame({"user": users, "item": items, "time": times})
    expected = (
        frame.sort_values("time", kind="stable").drop_duplicates(["user", "item"], keep="last").sort_index()
    )
    assert 0.5 < len(expected) / len(frame) < 0.9
    got = Interactions.from_arrays(users, items, times)
    assert got.user_ids.decode(got.users) == expected["user"].tolist()
    assert got.item_ids.decode(got.items) == expected["item"].tolist()
    assert got.timestamps.tolist() == expected["time"].tolist()


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
        (
            [1, 2],
            [1, 2],
            ["soon", "later"],
            r"^timestamps\[0\] = 'soon' is no time: write every time as",
        ),
        ([1, 2], [1, 2], [1, None], r"timestamps\[1\] is missing"),
    ],
)
def test_fault_17_bad_columns_are_one_clear_error(
    users: list, items: list, times: list | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Interactions.from_arrays(users, items, times)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"users": torch.tensor([0, 2])}, r"users\[1\] = 2 is out of range for num_users = 2"),
        ({"items": torch.tensor([0, -1])}, r"items\[1\] = -1 is out of range for num_items = 3"),
        ({"items": torch.tensor([0])}, "users has 2 rows, items 1"),
        (
            {"users": torch.tensor([0.0, float("nan")])},
            r"users must be an int64 tensor .* got float32 of shape \(2,\)",
        ),
        ({"users": torch.tensor([0, 1], dtype=torch.int32)}, "users must be an int64 tensor .* got int32"),
        ({"users": torch.tensor([[0], [1]])}, r"one dimension, got int64 of shape \(2, 1\)"),
        (
            {"users": [0, 1]},
            "users must be an int64 tensor .* got a list: .*from_arrays takes ids of any type",
        ),
        (
            {"timestamps": torch.tensor([5])},
            r"timestamps must be an int64 tensor of shape \(2,\), got int64 .*\(1,\)",
        ),
        ({"timestamps": torch.tensor([0.5, 1.0])}, "timestamps must be an int64 tensor .* got float32"),
        ({"user_ids": Vocabulary(["a"])}, "user_ids has 1 ids for 2"),
        ({"num_users": 2**40, "num_items": 2**23}, "do not fit 63 bits"),
        ({"users": torch.empty(0).long(), "items": torch.empty(0).long()}, "there are no interactions"),
    ],
)
def test_numbered_ids_are_checked(changed: dict[str, Any], message: str) -> None:
    good = {
        "users": torch.tensor([0, 1]),
        "items": torch.tensor([0, 1]),
        "timestamps": None,
        "num_users": 2,
        "num_items": 3,
    }
    assert len(Interactions(**good)) == 2
    with pytest.raises(ValueError, match=message):
        Interactions(**good | changed)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, unique=True))
def test_csr_lists_each_users_items_ascending(pairs: list[tuple]) -> None:
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    got = Interactions(users, items, None, 6, 7)
    offsets, sorted_items = got.csr()
    assert got.csr()[1] is sorted_items  # worked out once
    for user in range(6):
        own = sorted_items[offsets[user] : offsets[user + 1]].tolist()
        assert own == sorted(item for other, item in pairs if other == user)
    assert got.item_counts().tolist() == [sum(other == item for _, other in pairs) for item in range(7)]


def test_a_pair_twice_is_found_by_csr() -> None:
    twice = Interactions(torch.tensor([0, 1, 1]), torch.tensor([2, 2, 2]), None, 2, 3)
    with pytest.raises(ValueError, match="user 1 and item 2 occur together more than once"):
        twice.csr()


def test_take_by_number_and_by_bool() -> None:
    whole = Interactions.from_arrays(["a", "b", "c"], [1, 2, 3], [7, 8, 9])
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        part = whole.take(rows)
        assert sorted(part.item_ids.decode(part.items)) == [1, 3]
        assert sorted(part.timestamps.tolist()) == [7, 9]
        assert (part.num_users, part.num_items) == (3, 3)
    assert whole.take(torch.tensor([2, 0])).users.tolist() == [2, 0]
