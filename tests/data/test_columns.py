from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from ncf.data.columns import from_tensor, id_column, time_column, to_tensor


@pytest.mark.parametrize(
    "ids",
    [
        [5, 3, 5],
        (5, 3, 5),
        np.array([5, 3, 5], dtype=np.uint8),
        np.array([5, 3, 5], dtype=np.uint64),
        torch.tensor([5, 3, 5], dtype=torch.int16),
        pd.Series([5, 3, 5], dtype="Int64"),
        pl.Series([5, 3, 5]),
        pa.chunked_array([[5], [3, 5]]),
        pa.array([5, 3, 5]).dictionary_encode(),
    ],
    ids=lambda ids: type(ids).__module__ + "." + type(ids).__name__,
)
def test_whole_numbers_of_any_kind(ids: Any) -> None:
    column = id_column(ids, "ids")
    assert column.type == pa.int64()
    assert column.to_pylist() == [5, 3, 5]


@pytest.mark.parametrize(
    "ids",
    [
        ["é", "a", "é"],
        np.array(["é", "a", "é"]),
        np.array(["é", "a", "é"], dtype=object),
        pd.Series(["é", "a", "é"], dtype="category"),
        pl.Series(["é", "a", "é"]),
        pl.Series(["é", "a", "é"], dtype=pl.Categorical),
        pa.chunked_array([pa.array(["é"]).dictionary_encode(), pa.array(["a", "é"]).dictionary_encode()]),
        pa.array(["é", "a", "é"], pa.string_view()),
    ],
    ids=lambda ids: type(ids).__module__ + "." + type(ids).__name__,
)
def test_strings_of_any_kind(ids: Any) -> None:
    column = id_column(ids, "ids")
    assert column.type == pa.large_string()
    assert column.to_pylist() == ["é", "a", "é"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.0, 2.0], r"ids holds floating-point numbers \(ids\[0\] = 1\.0\)"),
        (np.array([1, np.nan]), r"ids\[1\] is NaN or missing"),
        (pd.Series([1, None]), r"ids\[1\] is NaN or missing"),
        (torch.tensor([0.5], dtype=torch.float16), "ids holds floating-point numbers"),
        ([1, None], r"ids\[1\] is missing"),
        ([None, None], r"ids\[0\] is missing"),
        (pd.Series(["a", None]), r"ids\[1\] is missing"),
        ([1, "x"], "ids cannot be read as one column of one type"),
        (np.array([1, "x"], dtype=object), "ids cannot be read as one column"),
        ([2**64], "ids cannot be read as one column"),
        (np.array([2**63], dtype=np.uint64), r"ids holds a number above 2\*\*63 - 1"),
        (np.array([[1, 2]]), "ids cannot be read as one column"),
        (5, "ids cannot be read as one column"),
        ([True], "ids is of type bool"),
        ([b"\xe9"], "ids is of type binary"),
        ([[1], [2]], "ids is of type list"),
        ([datetime.date(2024, 1, 1)], "ids is of type date32"),
    ],
)
def test_what_is_no_id(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        id_column(ids, "ids")


@pytest.mark.parametrize(
    "times",
    [
        [20240501, 20240101],
        [2.0, 1.0],
        torch.tensor([2, -1]),
        pd.Series(pd.to_datetime(["2024-05-01", "2024-01-01"])),
        np.array(["2024-05-01", "2024-01-01"], dtype="datetime64[D]"),
        pl.Series([datetime.datetime(2024, 5, 1, 12), datetime.datetime(2024, 5, 1, 11)]),
        [datetime.date(2024, 5, 1), datetime.date(2024, 1, 1)],
        [datetime.timedelta(seconds=2), datetime.timedelta(seconds=1)],
        pd.Series(pd.to_datetime(["2024-05-01", "2024-01-01"]).tz_localize("Asia/Tokyo")),
    ],
    ids=lambda times: type(times).__module__ + "." + type(times).__name__,
)
def test_times_of_any_kind_keep_their_order(times: Any) -> None:
    numbers = time_column(times, "times")
    assert numbers.dtype == torch.int64
    assert numbers.argsort().tolist() == [1, 0]


def test_large_times_lose_nothing() -> None:
    exact = [2**62 + 1, 2**62]
    assert time_column(exact, "times").tolist() == exact


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1, None], r"times\[1\] is missing"),
        ([1.0, float("nan")], r"times\[1\] is missing"),
        ([1.0, 2.5], r"times\[1\] = 2\.5 is no whole number: choose a unit small enough"),
        (["yesterday"], r"^times\[0\] = 'yesterday' is no time: write every time as"),
        ([[1]], "times must be whole numbers or times"),
        ([1e30], "times must be whole numbers or times"),
        (pd.Series([pd.Timestamp("2024-01-01"), pd.NaT]), r"times\[1\] is missing"),
    ],
)
def test_what_is_no_time(times: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_column(times, "times")


def test_what_is_given_is_neither_changed_nor_shared() -> None:
    given = np.array([3, 1, 2])
    time_column(given, "times")[0] = 9
    assert given.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "numbers",
    [
        pa.array([3, 1, 2]),
        pa.array([9, 3, 1, 2, 9]).slice(1, 3),
        pa.array([3, 1, 2], pa.uint8()),
        pa.array([3, None, 1, 2]).drop_null(),
        pa.chunked_array([[3], [1, 2]]),
        pa.chunked_array([[], [3, 1, 2]], pa.int32()),
    ],
)
def test_whole_numbers_become_a_tensor_however_arrow_holds_them(numbers: Any) -> None:
    tensor = to_tensor(numbers)
    assert tensor.tolist() == [3, 1, 2]
    assert tensor.dtype == torch.int64


@pytest.mark.parametrize("empty", [pa.array([], pa.int64()), pa.chunked_array([], pa.int64())])
def test_no_numbers_become_an_empty_tensor(empty: Any) -> None:
    assert to_tensor(empty).tolist() == []


def test_a_tensor_becomes_numbers_and_back() -> None:
    tensor = torch.tensor([[3, 0], [1, 0], [2, 0]])[:, 0]  # strided
    numbers = from_tensor(tensor)
    assert numbers.to_pylist() == [3, 1, 2]
    assert to_tensor(numbers).tolist() == [3, 1, 2]
    assert from_tensor(torch.tensor([], dtype=torch.int32)).to_pylist() == []
