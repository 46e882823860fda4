"""The columns of users, items and times, out of tables and out of CSV, TSV and Parquet files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ncf.data.columns import id_column, kind

_SEPARATORS = {".tsv": "\t", ".tab": "\t", ".inter": "\t", ".rating": "\t"}
_COMPRESSIONS = (".gz", ".bz2", ".zst")
_PARQUET = (".parquet", ".pq")
_NUMBER = r"^(-?\d+(\.\d*)?([eE][+-]?\d+)?|[nN]a[nN])$"
_FRACTION = r"\.|[nN]a[nN]"


def table_columns(table: Any, user: str, item: str, timestamp: str | None) -> list[Any]:
    """The columns of users, items and, where there are any, times.

    Args:
        table: a pandas, polars or pyarrow table, anything else with ``__arrow_c_stream__``, or a dict of columns.
        user: name of the column of user ids.
        item: name of the column of item ids.
        timestamp: name of the column of times; ``None`` means ``"timestamp"`` if there is one.

    Raises:
        ValueError: if a column is missing or there twice.

    Example::

        >>> from ncf.data.readers import table_columns
        >>> table_columns({"who": ["ann"], "what": ["tea"], "price": [2.5]}, "who", "what", None)
        [['ann'], ['tea']]
    """
    names: Sequence[str]
    if isinstance(table, Mapping):
        names = list(table)
    elif isinstance(table, pa.Table):
        names = table.column_names
    elif (
        hasattr(table, "columns") and hasattr(table, "__getitem__") and not isinstance(table, pa.RecordBatch)
    ):
        names = list(table.columns)  # pandas and polars: columns that are not wanted need not be convertible
    else:
        try:
            table = pa.table(table)
        except (TypeError, ValueError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"table is a {type(table).__name__} that Arrow cannot read: pass a pandas, polars or pyarrow table "
                "or a dict of columns"
            ) from error
        names = table.column_names
    return [table[name] for name in wanted_columns(names, user, item, timestamp, "the table")]


def wanted_columns(
    there: Sequence[str], user: str, item: str, timestamp: str | None, place: str
) -> list[str]:
    """The names of the columns to read, each of which must be ``there``.

    Example::

        >>> from ncf.data.readers import wanted_columns
        >>> wanted_columns(["user", "item", "timestamp"], "user", "item", None, "the table")
        ['user', 'item', 'timestamp']
    """
    wanted = [user, item]
    if timestamp is not None or "timestamp" in there:
        wanted.append(timestamp or "timestamp")
    for name in wanted:
        if list(there).count(name) != 1:
            fault = "occurs more than once" if name in there else "is missing"
            raise ValueError(f"column {name!r} {fault}: {place} has {', '.join(map(repr, there))}")
    return wanted


def read_columns(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    user: str,
    item: str,
    timestamp: str | None,
    *,
    columns: Sequence[str] | None = None,
    separator: str | None = None,
) -> list[Any]:
    r"""Read the columns of users, items and times of some files, one file after the other.

    Args:
        paths: a file, a glob, or several of them; a glob's files are taken in the order of their names.
        user: name of the column of user ids.
        item: name of the column of item ids.
        timestamp: name of the column of times; ``None`` means ``"timestamp"`` if there is one.
        columns: names of all columns, for text files without a header line.
        separator: of text files; by the file's ending if not given.

    Raises:
        FileNotFoundError: if a path matches no file.
        ValueError: for a malformed line or a missing id (file and row are named), a missing column, or files whose
            columns do not have the same type.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ncf.data.readers import read_columns
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "a.csv").write_text("user,item\n7,tea\n8,milk\n")
        ...     [column.to_pylist() for column in read_columns(f"{folder}/*.csv", "user", "item", None)]
        [[7, 8], ['tea', 'milk']]
    """
    files = _files(paths)
    tables = [_read(file, user, item, timestamp, columns, separator) for file in files]
    for file, table in zip(files, tables, strict=True):
        if table.column_names != tables[0].column_names:
            raise ValueError(
                f"{file} has the columns {table.column_names}, {files[0]} {tables[0].column_names}"
            )
    for place, name in enumerate((user, item)):
        ids = _ids([table.column(place) for table in tables], files, name)
        tables = [table.set_column(place, name, column) for table, column in zip(tables, ids, strict=True)]
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")  # times may differ in their unit
    except pa.ArrowTypeError as error:
        raise ValueError(
            f"the columns of times do not fit together in {', '.join(map(str, files))}: {error}"
        ) from error
    return list(whole.columns)


def _ids(columns: list[Any], files: list[Path], name: str) -> list[Any]:
    """One column of ids out of every file, all of one kind.

    Text is taken for numbers only where nothing is lost: ``007`` and ``7`` may be two people.
    """
    texts = [number for number, file in enumerate(files) if _ending(file) not in _PARQUET]
    typed = {kind(id_column(columns[n], f"{files[n]}: {name}")) for n in range(len(files)) if n not in texts}
    numbers = {n: _whole_numbers(columns[n]) for n in texts} if typed != {"strings"} else {}
    if all(column is not None for column in numbers.values()):
        columns = [numbers.get(n, column) for n, column in enumerate(columns)]
    else:
        columns = [_refusable(column) if n in texts else column for n, column in enumerate(columns)]
    ids = [id_column(column, f"{file}: {name}") for file, column in zip(files, columns, strict=True)]
    for file, column in zip(files, ids, strict=True):
        if kind(column) != kind(ids[0]):
            raise ValueError(
                f"{file}: column {name!r} holds {kind(column)}, in {files[0]} {kind(ids[0])}: make them equal, for "
                "instance with pandas or polars, and use Interactions.from_table"
            )
    return ids


def _whole_numbers(column: Any) -> Any:
    """The numbers that text stands for, if each is written as a number is; ``None`` if one is not."""
    for text in (column, pc.utf8_trim_whitespace(column)):
        try:
            numbers = text.cast(pa.int64())
        except pa.ArrowInvalid:
            continue
        if pc.all(pc.equal(numbers.cast(text.type), text), min_count=0).as_py():
            return numbers
    return None


def _refusable(column: Any) -> Any:
    """Text as it is, or as floats if that is what a program wrote where it had floats or gaps: no ids."""

    def numbers_only(text: Any) -> bool:
        every: bool = pc.all(pc.match_substring_regex(text, _NUMBER), min_count=0).as_py()
        return every

    if numbers_only(column[:100]) and numbers_only(column):
        fractions = pc.any(pc.match_substring_regex(column, _FRACTION), min_count=0).as_py()
        return column.cast(pa.float64()) if fractions else column
    return column


def _files(paths: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    several = [paths] if isinstance(paths, str | PathLike) else list(paths)
    files: list[Path] = []
    for path in several:
        found = [fspath(path)] if Path(path).exists() else sorted(glob.glob(fspath(path), recursive=True))
        if not found:
            raise FileNotFoundError(f"no file matches {fspath(path)!r}")
        for file in map(Path, found):
            if file.is_dir():
                raise FileNotFoundError(
                    f"{file} is a folder: name its files, for instance with {str(file / '*.parquet')!r}"
                )
            files.append(file)
    if not files:
        raise FileNotFoundError("paths is empty: name a file")
    return files


def _read(
    file: Path,
    user: str,
    item: str,
    timestamp: str | None,
    columns: Sequence[str] | None,
    separator: str | None,
) -> Any:
    ending = _ending(file)
    try:
        if ending in _PARQUET:
            parquet = pq.ParquetFile(file)
            wanted = wanted_columns(parquet.schema_arrow.names, user, item, timestamp, str(file))
            return parquet.read(columns=wanted).select(wanted)
        return _read_text(file, user, item, timestamp, columns, separator or _SEPARATORS.get(ending, ","))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is malformed: {error}") from error
    except OSError as error:
        if error.errno is not None:  # a matter of the file system, such as a lack of permission
            raise
        raise ValueError(f"{file} is damaged: {error}") from error


def _ending(file: Path) -> str:
    endings = [ending.lower() for ending in file.suffixes if ending.lower() not in _COMPRESSIONS]
    return endings[-1] if endings else ""


def _read_text(
    file: Path, user: str, item: str, timestamp: str | None, columns: Sequence[str] | None, separator: str
) -> Any:
    if len(separator) != 1:
        raise ValueError(f"separator = {separator!r}: it must be one character")
    parse = pa_csv.ParseOptions(delimiter=separator)
    # Only one thread counts rows: a malformed one is then named by its number.
    header = pa_csv.ReadOptions(use_threads=False)
    there = columns or pa_csv.open_csv(file, header, parse).schema.names
    wanted = wanted_columns(there, user, item, timestamp, str(file))

    def read(threads: bool) -> Any:
        return pa_csv.read_csv(
            file,
            pa_csv.ReadOptions(column_names=columns, use_threads=threads),
            parse,
            pa_csv.ConvertOptions(
                include_columns=wanted,
                column_types={user: pa.string(), item: pa.string()},
                null_values=[""],  # only what is empty is missing: a user may well be called "NA" or "null"
                strings_can_be_null=True,
            ),
        )

    try:
        return read(threads=True)
    except pa.ArrowInvalid:
        return read(threads=False)  # raises again, now with the number of the row
