"""CSV, TSV and Parquet files, one or many, as one Arrow table."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

_SEPARATORS = {".csv": ",", ".txt": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t"}


def read_tables(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    wanted: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    separator: str | None = None,
) -> Any:
    """Read the wanted columns of some files and put the rows one after the other.

    The type of a column is inferred by Arrow: a column of digits becomes whole numbers (``007`` becomes 7), anything
    else strings. Files compressed with gzip, bz2 or zstd are read by their ending.

    Args:
        paths: a file, a glob, or several of them; a glob's files are taken in the order of their names.
        wanted: names of the columns to read.
        columns: names of all columns, for text files without a header line.
        separator: of text files; by the file's ending if not given.

    Returns:
        A `pyarrow.Table` with the wanted columns.

    Raises:
        FileNotFoundError: if a path matches no file.
        ValueError: for a malformed line (its file and row are named), a missing column, or files whose
            columns do not have the same type.
    """
    tables = [(file, _read(file, wanted, columns, separator)) for file in _files(paths)]
    first_file, first = tables[0]
    for file, table in tables[1:]:
        for name in wanted:
            here, there = table.schema.field(name).type, first.schema.field(name).type
            if here != there:
                raise ValueError(
                    f"column {name!r} is {here} in {file}, but {there} in {first_file}: make them equal"
                )
    return pa.concat_tables([table for _, table in tables])


def _files(paths: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    several = [paths] if isinstance(paths, str | PathLike) else list(paths)
    files = []
    for path in several:
        found = [path] if Path(path).is_file() else sorted(glob.glob(fspath(path), recursive=True))
        if not found:
            raise FileNotFoundError(f"no file matches {fspath(path)!r}")
        files += [Path(file) for file in found]
    if not files:
        raise FileNotFoundError("paths is empty: name a file")
    return files


def _read(file: Path, wanted: Sequence[str], columns: Sequence[str] | None, separator: str | None) -> Any:
    suffixes = [suffix for suffix in file.suffixes if suffix not in (".gz", ".bz2", ".zst")]
    suffix = suffixes[-1] if suffixes else ""
    try:
        if suffix in (".parquet", ".pq"):
            there = pq.read_schema(file).names
            _check_columns(file, wanted, there)
            return pq.read_table(file, columns=list(wanted))
        names = list(columns) if columns is not None else None
        return _read_text(file, wanted, names, separator or _SEPARATORS.get(suffix, ","))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is malformed: {error}") from error


def _read_text(file: Path, wanted: Sequence[str], columns: list[str] | None, separator: str) -> Any:
    malformed: list[Any] = []

    def note(row: Any) -> str:
        malformed.append(row)
        return "error"

    try:
        table = pa_csv.read_csv(
            file,
            read_options=pa_csv.ReadOptions(
                column_names=columns, use_threads=False
            ),  # threads lose row numbers
            parse_options=pa_csv.ParseOptions(delimiter=separator, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        if malformed:
            row = malformed[0]
            raise ValueError(
                f"{file}, row {row.number}: {row.actual_columns} columns where {row.expected_columns} are expected: "
                f"{row.text!r}"
            ) from error
        raise
    _check_columns(file, wanted, table.column_names)
    return table.select(list(wanted))


def _check_columns(file: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(f"{file}: column {missing[0]!r} is missing, there are {', '.join(map(repr, there))}")
