"""The columns of users, items and times, out of tables and out of CSV, TSV and Parquet files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ncf.columns import id_column, kind

_SEPARATORS = {".tsv": "\t", ".tab": "\t", ".inter": "\t", ".rating": "\t"}
_COMPRESSIONS = (".gz", ".bz2", ".zst")
_PARQUET = (".parquet", ".pq")


def table_columns(table: Any, user: str, item: str, timestamp: str | None) -> list[Any]:
    """The columns of users, items and, where there are any, times.

    Args:
        table: a pandas, polars or pyarrow table, anything else with ``__arrow_c_stream__``, or a dict of columns.
        user: name of the column of user ids.
        item: name of the column of item ids.
        timestamp: name of the column of times; ``None`` means ``"timestamp"`` if there is one.

    Raises:
        ValueError: if a column is missing or there twice.
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
    """The names of the columns to read, each of which must be ``there``."""
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
    """Read the columns of users, items and times of some files, one file after the other.

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
    """
    files = _files(paths)
    tables = []
    for file in files:
        table = _read(file, user, item, timestamp, columns, separator)
        for place, name in enumerate((user, item)):
            table = table.set_column(place, name, id_column(table[name], f"{file}: {name}"))
        tables.append(table)
        if table.column_names != tables[0].column_names:
            raise ValueError(
                f"{file} has the columns {table.column_names}, {files[0]} {tables[0].column_names}"
            )
        for name in (user, item):
            here, first = (kind(one[name]) for one in (table, tables[0]))
            if here != first:
                raise ValueError(
                    f"{file}: column {name!r} holds {here}, in {files[0]} {first}: make them equal, for instance with "
                    "pandas or polars, and use Interactions.from_table"
                )
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")  # times may differ in their unit
    except pa.ArrowTypeError as error:
        raise ValueError(
            f"the columns of times do not fit together in {', '.join(map(str, files))}: {error}"
        ) from error
    return list(whole.columns)


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
    endings = [ending for ending in file.suffixes if ending not in _COMPRESSIONS]
    ending = endings[-1].lower() if endings else ""
    try:
        if ending in _PARQUET:
            parquet = pq.ParquetFile(file)
            wanted = wanted_columns(parquet.schema_arrow.names, user, item, timestamp, str(file))
            return parquet.read(columns=wanted).select(wanted)
        return _read_text(file, user, item, timestamp, columns, separator or _SEPARATORS.get(ending, ","))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is malformed: {error}") from error


def _read_text(
    file: Path, user: str, item: str, timestamp: str | None, columns: Sequence[str] | None, separator: str
) -> Any:
    if len(separator) != 1:
        raise ValueError(f"separator = {separator!r}: it must be one character")
    parse = pa_csv.ParseOptions(delimiter=separator)
    there = columns or pa_csv.open_csv(file, parse_options=parse).schema.names
    wanted = wanted_columns(there, user, item, timestamp, str(file))

    def read(threads: bool) -> Any:
        return pa_csv.read_csv(
            file,
            pa_csv.ReadOptions(column_names=columns, use_threads=threads),
            parse,
            # Only what is empty is missing: a user may well be called "NA" or "null".
            pa_csv.ConvertOptions(include_columns=wanted, null_values=[""], strings_can_be_null=True),
        )

    try:
        return read(threads=True)
    except pa.ArrowInvalid:
        return read(threads=False)  # raises again, now with the number of the row
