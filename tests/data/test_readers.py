from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ncf import Interactions, Vocabulary
from ncf.data import columns, readers


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
    pq.write_table(pa.table({"user": [1], "item": [2]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("user,item\nx,2\n")
    with pytest.raises(
        ValueError, match=r"b\.csv: column 'user' holds strings, in .*a\.parquet whole numbers"
    ):
        Interactions.from_files([tmp_path / "a.parquet", tmp_path / "b.csv"])
    pq.write_table(pa.table({"user": [1]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column 'item' is missing"):
        Interactions.from_files(tmp_path / "c.parquet")
    with pytest.raises(FileNotFoundError, match=r"is a folder: name its files, .*\*\.parquet"):
        Interactions.from_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="paths is empty"):
        Interactions.from_files([])
    (tmp_path / "d.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"d\.parquet is malformed"):
        Interactions.from_files(tmp_path / "d.parquet")


def test_any_number_of_files_in_the_order_given(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.csv").write_text(f"user,item\n1,{name}\n")
    got = Interactions.from_files([tmp_path / "b.csv", str(tmp_path / "a.csv")])
    assert got.item_ids.decode(got.items) == ["b", "a"]


def test_only_what_is_empty_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\nNA,1\nnull,2\nnan,3\n")
    got = Interactions.from_files(tmp_path / "a.csv")
    assert got.user_ids.decode(got.users) == ["NA", "null", "nan"]
    (tmp_path / "a.csv").write_text("user,item\nann,1\n,2\n")
    with pytest.raises(ValueError, match=r"a\.csv: user\[1\] is missing"):
        Interactions.from_files(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("user,item\n1,1\n2,\n")
    with pytest.raises(ValueError, match=r"a\.csv: item\[1\] is missing"):
        Interactions.from_files(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "ids",
    [
        ["007", "7", "07"],  # three people
        ["0x1F", "31", "1e3"],
        ["2024-01-01", "2024-01-02", "2024-1-1"],
        ["true", "false", "inf"],
        ["18446744073709551616", "1", "-0"],
        ["+49", "49", " 49 a"],
        ["10:30", "1.2.3", "nan"],
    ],
)
def test_fault_17_ids_that_look_like_something_else_stay_as_they_are(tmp_path: Path, ids: list[str]) -> None:
    lines = "".join(f"{one},1\n" for one in ids)
    (tmp_path / "a.csv").write_text("user,item\n" + lines)
    got = Interactions.from_files(tmp_path / "a.csv")
    assert got.user_ids.decode(got.users) == ids
    assert got.item_ids.decode(got.items) == [1] * len(ids)


@given(
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9, unique=True),
        st.lists(st.from_regex(r"\A[a-z0-9]{0,5}[a-z,\"]\Z"), min_size=1, max_size=9, unique=True),
    )
)
def test_ids_written_by_pandas_come_back_with_their_type(tmp_path_factory: Any, ids: list) -> None:
    file = tmp_path_factory.mktemp("ids") / "a.csv"
    pd.DataFrame({"user": ids, "item": 1}).to_csv(file, index=False)
    assume(ids != ["nan"])  # the one text that says that something is missing
    got = Interactions.from_files(file)
    assert got.user_ids.decode(got.users) == ids


def test_ids_are_numbers_in_every_file_or_in_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n7,1\n8,2\n")
    (tmp_path / "b.csv").write_text("user,item\n7,3\nx,4\n")
    pq.write_table(pa.table({"user": ["x", "9"], "item": [2, 3]}), tmp_path / "c.parquet")
    for other, users, items in (("b.csv", ["7", "x"], [3, 4]), ("c.parquet", ["x", "9"], [2, 3])):
        got = Interactions.from_files([tmp_path / "a.csv", tmp_path / other])
        assert got.user_ids.decode(got.users) == ["7", "8", *users]
        assert got.item_ids.decode(got.items) == [1, 2, *items]


@pytest.mark.parametrize("damage", ["cut", "other", "changed"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b"user,item\n" + b"".join(b"%d,%d\n" % (row, row % 7) for row in range(50_000)))
    content = {
        "cut": whole[: len(whole) // 2],
        "other": b"user,item\n1,2\n",
        "changed": whole[:-6] + b"abcdef",
    }
    (tmp_path / "a.csv.gz").write_bytes(content[damage])
    with pytest.raises(ValueError, match=r"a\.csv\.gz is damaged: "):
        Interactions.from_files(tmp_path / "a.csv.gz")


def test_columns_that_are_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"user,note,item\n1,caf\xe9,5\n2,,6\n")
    got = Interactions.from_files(tmp_path / "a.csv")
    assert got.item_ids.decode(got.items) == [5, 6]
    odd = pd.DataFrame({"user": [1, 1], "item": [2, 3], "note": [1, "x"]})
    with pytest.raises(pa.ArrowException):
        pa.table(odd)
    assert len(Interactions.from_table(odd)) == 2


def test_a_malformed_line_deep_in_a_file_is_named(tmp_path: Path) -> None:
    lines = ["user,item", *(f"{row},{row % 7}" for row in range(200_000))]  # several blocks: read by threads
    lines[150_000] = "1,2,3"
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        file.write("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"log\.csv\.gz is malformed: .*Row #150001: Expected 2 columns, got 3"
    ):
        Interactions.from_files(tmp_path / "log.csv.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv is malformed: Empty CSV file"),
        ("user,item\n", "there are no interactions"),
        ("user,item,user\n1,2,3\n", "column 'user' occurs more than once"),
        ("user,item\n1.5,2\n", r"a\.csv: user holds floating-point numbers"),
        ("user,item\n7.0,2\n8,2\n", r"a\.csv: user holds floating-point numbers .*user\[0\] = 7\.0"),
        ("user,item\n7,2\nNaN,2\n", r"a\.csv: user\[1\] is NaN or missing"),
        (
            "user,item,timestamp\n1,2,soon\n",
            r"a\.csv: timestamp\[0\] = 'soon' is no time: write every time as",
        ),
        ("user,item,timestamp\n1,2,5\n1,3,\n", r"a\.csv: timestamp\[1\] is missing"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Interactions.from_files(tmp_path / "a.csv")


def test_a_separator_is_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("1::2\n")
    with pytest.raises(ValueError, match="separator = '::': it must be one character"):
        Interactions.from_files(tmp_path / "a.dat", columns=["user", "item"], separator="::")


def test_files_with_and_without_times_or_with_unequal_times(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,timestamp\n1,2,2024-01-01 00:00:01\n")
    (tmp_path / "b.csv").write_text("user,item,timestamp\n1,3,2024-01-01 00:00:00.5\n")  # another unit
    got = Interactions.from_files(tmp_path / "*.csv")
    assert got.timestamps.diff().item() == -500_000_000
    (tmp_path / "b.csv").write_text("user,item\n1,3\n")
    with pytest.raises(ValueError, match=r"b\.csv has the columns \['user', 'item'\]"):
        Interactions.from_files(tmp_path / "*.csv")
    (tmp_path / "b.csv").write_text("user,item,timestamp\n1,3,5\n")
    with pytest.raises(ValueError, match="the columns 'timestamp' of times do not fit together"):
        Interactions.from_files(tmp_path / "*.csv")


@pytest.mark.parametrize("table", [dict, pd.DataFrame, pl.DataFrame, pa.table])
def test_a_column_called_timestamp_is_the_time(table: Any) -> None:
    columns = {"user": [1, 1], "item": [1, 2], "timestamp": [9, 5]}
    assert Interactions.from_table(table(columns)).timestamps.tolist() == [9, 5]
    with pytest.raises(
        ValueError, match="column 'when' is missing: the table has 'user', 'item', 'timestamp'"
    ):
        Interactions.from_table(table(columns), timestamp="when")
    del columns["timestamp"]
    assert Interactions.from_table(table(columns)).timestamps is None
    with pytest.raises(ValueError, match="column 'timestamp' is missing"):
        Interactions.from_table(table(columns), timestamp="timestamp")


def test_whatever_speaks_arrow() -> None:
    table = pa.table({"user": ["a", "b"], "item": [1, 2]})
    for speaker in (table.to_reader(), table.to_batches()[0]):
        assert Interactions.from_table(speaker).item_ids.decode(Interactions.from_table(table).items) == [
            1,
            2,
        ]
    with pytest.raises(ValueError, match="table is a list that Arrow cannot read"):
        Interactions.from_table([1, 2])
    with pytest.raises(ValueError, match="user has 2 rows, item 1"):
        Interactions.from_table({"user": [1, 2], "item": [1]})


def test_rows_with_gaps_are_dropped_on_demand_and_counted(tmp_path: Path) -> None:
    text = "order,customer,sku,date\n1,7,a,2025-01-01\n2,,b,2025-01-02\n3,8,,2025-01-03\n4,,,\n5,9,c,2025-01-05\n"
    (tmp_path / "orders.csv").write_text(text)
    names = {"user": "customer", "item": "sku", "timestamp": "date"}
    with pytest.raises(
        ValueError, match=r"orders\.csv: customer\[1\] is missing: drop the row \(missing='drop'\)"
    ):
        Interactions.from_files(tmp_path / "orders.csv", **names)
    note = "left out: 2 customer missing, 2 sku missing, 1 date missing"
    frames = [pd.read_csv(tmp_path / "orders.csv"), pl.read_csv(tmp_path / "orders.csv")]
    read = [Interactions.from_files(tmp_path / "orders.csv", missing="drop", **names)]
    read += [Interactions.from_table(frame, missing="drop", **names) for frame in frames]
    for got in read:  # pandas holds customers with gaps as floats
        assert repr(got) == f"Interactions(2 rows, 2 users, 2 items; {note})"
        assert got.user_ids.decode(got.users) == [7, 9]
        assert got.item_ids.decode(got.items) == ["a", "c"]
        assert int(got.timestamps.diff()) == 4 * 86_400_000
        assert got.take(torch.tensor([0])).dropped == {}
    with pytest.raises(ValueError, match=r"there are no interactions left: 1 users missing of 1 rows"):
        Interactions.from_arrays([None], ["a"], missing="drop")
    with pytest.raises(ValueError, match=r"users holds floating-point numbers \(users\[1\] = 1\.5\)"):
        Interactions.from_arrays([float("nan"), 1.5], ["a", "b"], missing="drop")


@pytest.mark.parametrize("make", [dict, pd.DataFrame, pl.DataFrame, pa.table])
def test_errors_in_tables_name_the_users_column(make: Any) -> None:
    columns = {"customer": ["a", None], "sku": [1, 2]}
    with pytest.raises(ValueError, match=r"^customer\[1\] is missing"):
        Interactions.from_table(make(columns), user="customer", item="sku")


@pytest.mark.parametrize("ending", ["csv", "parquet", "csv.GZ"])
def test_rows_are_chosen_by_an_expression_over_any_column(tmp_path: Path, ending: str) -> None:
    table = pa.table({"user": [1, 2, 3], "item": ["a", "b", "c"], "pieces": [1, -1, 2]})
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table, file)
    elif ending == "csv":
        table.to_pandas().to_csv(file, index=False)
    else:
        file.write_bytes(gzip.compress(table.to_pandas().to_csv(index=False).encode()))
    kept = pc.field("pieces") > 0
    for got in (Interactions.from_files(file, where=kept), Interactions.from_table(table, where=kept)):
        assert got.item_ids.decode(got.items) == ["a", "c"]
        assert got.user_ids.decode(got.users) == [1, 3]
    with pytest.raises(ValueError, match="where = 'pieces > 0': give an Arrow expression"):
        Interactions.from_table(table, where="pieces > 0")
    with pytest.raises(ValueError, match=r"where = .*colour.* cannot be applied to the table"):
        Interactions.from_table(table, where=pc.field("colour") == "red")


def test_iso_dates_in_tables_are_read_as_in_files(tmp_path: Path) -> None:
    for dates in (["2025-01-02", "2025-01-01"], ["2025-01-01 10:00:00", "2025-01-01T09:00:00.5"]):
        frame = pd.DataFrame({"user": [1, 1], "item": [2, 3], "timestamp": dates})
        frame.to_csv(tmp_path / "a.csv", index=False)
        in_file = Interactions.from_files(tmp_path / "a.csv").timestamps
        assert torch.equal(Interactions.from_table(frame).timestamps, in_file)
        assert torch.equal(Interactions.from_table(pl.DataFrame(frame)).timestamps, in_file)


@pytest.mark.parametrize("rows", [3, 200_000])
def test_of_mixed_dates_the_bad_one_is_shown(tmp_path: Path, rows: int) -> None:
    dates = ["2025-01-01"] * (rows - 1) + ["31/12/2025"]
    frame = pd.DataFrame({"user": range(rows), "item": 1, "when": dates})
    frame.to_csv(tmp_path / "a.csv", index=False)
    wrong = rf"a\.csv: when\[{rows - 1}\] = '31/12/2025' is no time"
    with pytest.raises(ValueError, match=wrong):
        Interactions.from_files(tmp_path / "a.csv", timestamp="when")
    with pytest.raises(ValueError, match=rf"when\[{rows - 1}\] = '31/12/2025' is no time"):
        Interactions.from_table(frame, timestamp="when")


def test_ids_that_differ_in_whitespace_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n7,1\n 7,1\n7 ,1\n\u30007,1\n", encoding="utf-8")
    got = Interactions.from_files(tmp_path / "a.csv")
    assert got.user_ids.decode(got.users) == ["7", " 7", "7 ", "\u30007"]


def test_hints_for_separators_encodings_and_lazy_frames(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user;item\n1;2\n")
    with pytest.raises(ValueError, match=r"column 'user' is missing.*; pass separator=';'"):
        Interactions.from_files(tmp_path / "a.csv")
    for text in ("user,item\nandré,1\n", "andré,item,user\n1,1,1\n"):
        (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
        if text.startswith("user"):
            with pytest.raises(
                ValueError, match=r"a\.csv is malformed: .*save it as UTF-8.*encoding='latin-1'"
            ):
                Interactions.from_files(tmp_path / "a.csv")
        else:
            with pytest.raises(ValueError, match=r"a\.csv"):
                Interactions.from_files(tmp_path / "a.csv", user="x")
    with pytest.raises(ValueError, match=r"pass table\.collect\(\)"):
        Interactions.from_table(pl.DataFrame({"user": [1], "item": [2]}).lazy())


def test_line_breaks_in_quotes_are_read_in_files_of_any_size(tmp_path: Path) -> None:
    rows = 120_000  # several blocks of Arrow's reader
    body = "".join(f'{row},"a\nb","{row % 9}"\n' for row in range(rows))
    (tmp_path / "a.csv").write_text("user,note,item\n" + body)
    assert len(Interactions.from_files(tmp_path / "a.csv")) == rows


def test_arguments_that_make_no_sense_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    (tmp_path / "gap.csv").write_text("user,item\n,2\n")
    table = {"user": [1], "item": [2], "timestamp": [1]}
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: Interactions.from_files(tmp_path / "a.csv", separator=""), "separator = ''"),
        (lambda: Interactions.from_files(tmp_path / "a.csv", separator="é"), "separator = 'é'"),
        (lambda: Interactions.from_files(tmp_path / "a.csv", columns=[]), "columns is empty"),
        (lambda: Interactions.from_files(tmp_path / "a.csv", item="user"), "must be different ones"),
        (lambda: Interactions.from_table(table, item="user"), "must be different ones"),
        (lambda: Interactions.from_table(table, missing="skip"), "missing = 'skip'"),
        (lambda: Interactions.from_files(tmp_path / "gap.csv", missing="skip"), "^missing = 'skip'"),
        (lambda: Interactions.from_table(table, min_user_count=True), "min_user_count = True"),
        (lambda: Interactions.from_arrays("ab", [1, 2]), "users cannot be read as one column: got a str"),
        (lambda: Interactions.from_arrays({1, 2}, [1, 2]), "got a set"),
        (lambda: Interactions.from_arrays(["\ud800"], [1]), "users cannot be read as one column"),
        (lambda: Interactions.from_arrays([1], [1], [True]), "timestamps is of type bool"),
        (lambda: Interactions.from_arrays([1], [1], [1.7e18]), "too large to be exact"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_new_rows_are_numbered_as_a_model_numbers_them(tmp_path: Path) -> None:
    users, items = Vocabulary(["eve", "ann", "bob"]), Vocabulary([30, 10, 20])
    table = {"user": ["ann", "zoe", "bob", "ann"], "item": [10, 10, 20, 99]}
    pd.DataFrame(table).to_csv(tmp_path / "a.csv", index=False)
    vocabularies = {"user_ids": users, "item_ids": items}
    with pytest.raises(ValueError, match=r"user\[1\] = 'zoe' is not among the 3 known ids"):
        Interactions.from_table(table, **vocabularies)
    for got in (
        Interactions.from_table(table, unknown="drop", **vocabularies),
        Interactions.from_files(tmp_path / "a.csv", unknown="drop", **vocabularies),
    ):
        assert (got.users.tolist(), got.items.tolist()) == ([1, 2], [1, 2])
        assert got.user_ids is users
        assert (got.num_users, got.num_items) == (3, 3)
        assert got.dropped == {"user unknown": 1, "item unknown": 1}
    half = Interactions.from_table(table, item_ids=items, unknown="drop", min_user_count=1)
    assert list(half.user_ids) == ["ann", "bob", "zoe"]
    with pytest.raises(ValueError, match="no interactions left: 1 users unknown of 1 rows"):
        Interactions.from_arrays(["zoe"], [10], unknown="drop", **vocabularies)
    with pytest.raises(ValueError, match="users holds whole numbers, the vocabulary strings"):
        Interactions.from_arrays([1], [10], unknown="drop", **vocabularies)


_IDS = st.one_of(st.integers(-99, 99).map(str), st.sampled_from(["007", "x", "é", "", "7.0", "nan", "a b"]))
_TIMES = st.sampled_from(
    [
        "5",
        "-1",
        "",
        "2025-01-02",
        "2025-01-02 03:04:05",
        "2025-01-02 03:04:05.25",
        "1.0",
        "true",
        "10:30",
        "soon",
    ]
)


@given(
    st.lists(st.tuples(_IDS, _IDS, _TIMES), min_size=1, max_size=60),
    st.sampled_from(["raise", "drop"]),
    st.booleans(),
    st.booleans(),
)
def test_a_stream_of_blocks_reads_as_the_whole_file_does(
    tmp_path_factory: Any, rows: list[tuple[str, str, str]], missing: Any, plain: bool, times: bool
) -> None:
    if plain:  # mostly files without a fault
        rows = [(str(len(user)), item or "1", "5") for user, item, _ in rows]
    file = tmp_path_factory.mktemp("stream") / "a.csv"
    names = ["user", "item", "timestamp"][: 2 + times]
    lines = [
        ",".join(f'"{value}"' if value == "a b" else value for value in row[: 2 + times]) for row in rows
    ]
    file.write_text("\n".join([",".join(names), *lines, ""]), encoding="utf-8")

    def read() -> tuple[Any, ...]:
        try:
            got = Interactions.from_files(file, missing=missing)
        except ValueError as error:
            return (str(error),)
        stamps = None if got.timestamps is None else got.timestamps.tolist()
        return (
            got.users.tolist(),
            got.items.tolist(),
            stamps,
            list(got.user_ids),
            list(got.item_ids),
            got.dropped,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers.pa_csv, "open_csv", _at_once)
        expected = read()
    with pytest.MonkeyPatch.context() as patch:  # blocks of a few rows, whose ids are merged again and again
        patch.setattr(readers, "_BYTES", 40 + max(map(len, lines)))
        patch.setattr(columns, "_DISTINCT", 3)
        assert read() == expected


class _at_once:  # noqa: N801 - stands in for a function
    """Arrow's reader of whole files, which looks at all rows of a column for its type, as a stream of one piece."""

    def __init__(self, file: Any, options: Any, parse: Any, convert: Any = None) -> None:
        options = pa_csv.ReadOptions(column_names=options.column_names, use_threads=options.use_threads)
        self.table = pa_csv.read_csv(file, options, parse, convert)
        self.schema = self.table.schema

    def __iter__(self) -> Any:
        return iter(self.table.combine_chunks().to_batches())


@pytest.mark.parametrize("rows_at_once", [7, 1 << 17])
def test_parquet_is_read_in_pieces(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_ROWS", rows_at_once)
    monkeypatch.setattr(columns, "_DISTINCT", 5)
    users = [f"u{row * 7919 % 31}" for row in range(100)]
    table = pa.table(
        {
            "user": pa.array(users).dictionary_encode(),
            "item": pa.array(range(100), pa.uint16()),
            "timestamp": range(100),
            "x": [row % 3 for row in range(100)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    for where in (None, pc.field("x") > 0):
        got = Interactions.from_files(tmp_path / "a.parquet", where=where)
        rows = [row for row in range(100) if where is None or row % 3 > 0]
        assert got.user_ids.decode(got.users) == [users[row] for row in rows]
        assert got.item_ids.decode(got.items) == rows
        assert got.timestamps.tolist() == rows
    with pytest.raises(ValueError, match="where = 'x > 0': give an Arrow expression"):
        Interactions.from_files(tmp_path / "a.parquet", where="x > 0")


def test_a_long_csv_file_takes_little_more_memory_than_its_codes(tmp_path: Path) -> None:
    rows, file = 400_000, tmp_path / "a.csv"
    note = "x" * 100
    file.write_text(
        "user,item,note\n" + "".join(f"u{row % 997},i{row % 499},{note}\n" for row in range(rows))
    )
    wanted = readers.Wanted("user", "item", None)
    before = pa.total_allocated_bytes()
    read = readers.read_files(file, wanted)
    assert pa.total_allocated_bytes() - before < 2.2 * 4 * rows  # codes of 4 bytes for each of two columns
    assert len(read["user"].dictionary) == 997
