"""The columns of users, items and times, out of tables and out of CSV, TSV and Parquet files."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ncf.data.arrow import pa, pa_csv, pc, pq
from ncf.data.columns import IdEncoder, coded_ids, kind, time_values

_SEPARATORS = {".tsv": "\t", ".tab": "\t", ".inter": "\t", ".rating": "\t"}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_PARQUET = (".parquet", ".pq")
_BYTES = 1 << 22  # of text that are parsed at once
_ROWS = 1 << 17  # of Parquet that are read at once


@dataclass(frozen=True)
class Wanted:
    """The columns to read, and the rows.

    Args:
        user: name of the column of user ids.
        item: name of the column of item ids.
        timestamp: name of the column of times; ``None`` means ``"timestamp"`` if there is one.
        where: rows to read, an Arrow expression over any columns; by default all.
        gaps: leave missing ids and times in the columns.
    """

    user: str
    item: str
    timestamp: str | None
    where: Any = None
    gaps: bool = False

    def names(self, there: Sequence[str], place: str, hint: str = "") -> list[str]:
        """The names of the columns to read; each must be ``there`` exactly once."""
        wanted = [self.user, self.item]
        if self.timestamp is not None or "timestamp" in there:
            wanted.append(self.timestamp or "timestamp")
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"the columns {', '.join(map(repr, wanted))} must be different ones")
        for name in wanted:
            if list(there).count(name) != 1:
                fault = "occurs more than once" if name in there else "is missing"
                raise ValueError(f"column {name!r} {fault}: {place} has {', '.join(map(repr, there))}{hint}")
        return wanted


def read_table(table: Any, wanted: Wanted) -> dict[str, Any]:
    """Read the columns of users, items and, where there are any, times, by name.

    Args:
        table: a pandas, polars or pyarrow table, anything else with ``__arrow_c_stream__``, or a dict of columns.
        wanted: the columns and rows to read.

    Raises:
        ValueError: if a column is missing or there twice, or the table cannot be read.
    """
    if type(table).__name__ == "LazyFrame":
        raise ValueError("table is a polars LazyFrame, whose rows are not known yet: pass table.collect()")
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
        table = arrow_table(table)
        names = table.column_names
    chosen = wanted.names(names, "the table")
    if wanted.where is not None:
        table = _filtered(arrow_table(table), wanted.where, "the table")
    return {name: table[name] for name in chosen}


def read_files(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]],
    wanted: Wanted,
    *,
    columns: Sequence[str] | None = None,
    separator: str | None = None,
) -> dict[str, Any]:
    """Read the columns of users, items and, where there are any, times, by name, one file after the other.

    Args:
        paths: a file, a glob, or several of them; a glob's files are taken in the order of their names.
        wanted: the columns and rows to read.
        columns: names of all columns, for text files without a header line.
        separator: of text files; by the file's ending if not given.

    Raises:
        FileNotFoundError: if a path matches no file.
        ValueError: for a malformed line, a missing id or a time that cannot be read (file and row are named), a missing
            column, or files whose columns do not have the same type.
    """
    if columns is not None and not columns:
        raise ValueError("columns is empty: name every column of the file, or leave it out")
    files = _files(paths)
    tables = [_read(file, wanted, columns, separator) for file in files]
    for file, table in zip(files, tables, strict=True):
        if list(table) != list(tables[0]):
            raise ValueError(f"{file} has the columns {list(table)}, {files[0]} {list(tables[0])}")
    user, item, *times = tables[0]
    read = {}
    for name in (user, item):
        pieces = _ids([table.pop(name) for table in tables], files, name, wanted.gaps)
        read[name] = pieces[0]
        if len(pieces) > 1:
            read[name] = pa.chunked_array(pieces).unify_dictionaries().combine_chunks()
    for name in times:
        each = [
            time_values(table.pop(name), f"{file}: {name}", gaps=wanted.gaps)
            for file, table in zip(files, tables, strict=True)
        ]
        try:  # times may differ in their unit
            whole = pa.concat_tables([pa.table({name: one}) for one in each], promote_options="permissive")
            read[name] = whole[name]
        except pa.ArrowException as error:
            raise ValueError(
                f"the columns {name!r} of times do not fit together in {', '.join(map(str, files))}: {error}"
            ) from error
    return read


def _ids(columns: list[Any], files: list[Path], name: str, gaps: bool) -> list[Any]:
    """One column of coded ids out of every file, all of one kind.

    Text holds whole numbers if every id, in every file, is written as one; else it holds strings as they stand, for
    ``007`` and ``7`` may be two people.
    """
    texts = [number for number, file in enumerate(files) if _endings(file)[0] not in _PARQUET]
    typed = {
        kind(coded_ids(columns[n], f"{files[n]}: {name}", gaps=gaps).dictionary)
        for n in range(len(files))
        if n not in texts
    }
    distinct = {n: columns[n].dictionary for n in texts}
    numbers = {n: None if typed == {"strings"} else _whole_numbers(distinct[n]) for n in texts}
    plain = all(column is not None for column in numbers.values())
    ids = []
    for n, column in enumerate(columns):
        if n in texts:
            values = numbers[n] if plain else _floats_or_text(distinct[n])
            column = pa.DictionaryArray.from_arrays(column.indices, values)
        ids.append(coded_ids(column, f"{files[n]}: {name}", gaps=gaps))
    for file, column in zip(files, ids, strict=True):
        if column.type != ids[0].type:
            raise ValueError(
                f"{file}: column {name!r} holds {kind(column.dictionary)}, in {files[0]} {kind(ids[0].dictionary)}: "
                "make them equal, for instance with pandas or polars, and use Interactions.from_table"
            )
    return ids


def _whole_numbers(column: Any) -> Any:
    """Text as numbers, if each is written as a whole number is; else ``None``."""
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return numbers if pc.all(pc.equal(numbers.cast(column.type), column), min_count=0).as_py() else None


def _floats_or_text(column: Any) -> Any:
    """Text as it is, or as floats where a program wrote ``7.0`` or ``nan``: ids that had gaps, and are none."""
    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowInvalid:
        return column
    if pc.any(pc.match_substring_regex(column, "(?i)inf|x"), min_count=0).as_py():
        return column
    written = pc.any(pc.match_substring_regex(column, r"\.|[nN]a[nN]"), min_count=0).as_py()
    return numbers if written else column


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


def _read(file: Path, wanted: Wanted, columns: Sequence[str] | None, separator: str | None) -> dict[str, Any]:
    """Read a file's columns: ids as dictionary arrays, times as they are."""
    ending, _ = _endings(file)
    try:
        if ending in _PARQUET:
            return _read_parquet(file, wanted)
        return _read_text(
            file, wanted, columns, _SEPARATORS.get(ending, ",") if separator is None else separator
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        hint = ""
        if "UTF8" in str(error) or isinstance(error, UnicodeDecodeError):
            hint = "; save it as UTF-8, or pass pandas.read_csv(..., encoding='latin-1') to Interactions.from_table"
        raise ValueError(f"{file} is malformed: {error}{hint}") from error
    except OSError as error:
        if error.errno is not None:  # a matter of the file system, such as a lack of permission
            raise
        raise ValueError(f"{file} is damaged: {error}") from error


def _endings(file: Path) -> tuple[str, str | None]:
    """Ending of the file without its compression, in lower case, and the name of the compression."""
    endings = [ending.lower() for ending in file.suffixes]
    compression = _COMPRESSIONS.get(endings[-1]) if endings else None
    if compression:
        endings.pop()
    return endings[-1] if endings else "", compression


def _encoded(batches: Iterable[Any], schema: Any, names: list[str], file: Path) -> dict[str, Any]:
    """Columns of users, items and times out of tables or batches of rows, each forgotten when it is encoded."""
    ids = {name: IdEncoder(f"{file}: {name}") for name in names[:2]}
    times: dict[str, list[Any]] = {name: [] for name in names[2:]}
    for batch in batches:
        for name, encoder in ids.items():
            column = batch.column(name)
            for piece in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                encoder.add(piece)
        for name, pieces in times.items():
            column = batch.column(name)
            pieces.extend(column.chunks if isinstance(column, pa.ChunkedArray) else [column])
    read = {name: encoder.finish() for name, encoder in ids.items()}
    for name, pieces in times.items():
        read[name] = pa.chunked_array(pieces, schema.field(name).type)
    return read


def _read_parquet(file: Path, wanted: Wanted) -> dict[str, Any]:
    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        names = wanted.names(schema.names, str(file))
        if wanted.where is None:
            return _encoded(parquet.iter_batches(_ROWS, columns=names), schema, names, file)
    from pyarrow import dataset  # here, for it imports pandas

    rows = dataset.dataset(file, format="parquet", partitioning=None)
    filtered = rows.to_batches(columns=names, filter=_expression(wanted.where), batch_size=_ROWS)
    return _encoded(filtered, schema, names, file)


def _read_text(file: Path, wanted: Wanted, columns: Sequence[str] | None, separator: str) -> dict[str, Any]:
    if len(separator) != 1 or not separator.isascii():
        raise ValueError(f"separator = {separator!r}: it must be one character (of ASCII)")
    compression = _endings(file)[1]

    def opened() -> Any:
        return pa.input_stream(str(file), compression=compression)

    # Only one thread counts rows: a malformed one is then named by its number.
    plain = pa_csv.ReadOptions(use_threads=False)
    there = columns or pa_csv.open_csv(opened(), plain, pa_csv.ParseOptions(delimiter=separator)).schema.names
    other = next((mark for mark in ";\t|," if len(there) == 1 and mark in there[0]), None)
    names = wanted.names(there, str(file), f"; pass separator={other!r}" if other else "")

    def read(threads: bool, breaks: bool, types: dict[str, Any], whole: bool) -> dict[str, Any]:
        convert = pa_csv.ConvertOptions(
            include_columns=names if wanted.where is None else None,
            column_types=types,
            null_values=[""],  # only what is empty is missing: a user may well be called "NA" or "null"
            strings_can_be_null=True,
        )
        parse = pa_csv.ParseOptions(delimiter=separator, newlines_in_values=breaks)
        options = pa_csv.ReadOptions(column_names=columns, use_threads=threads, block_size=_BYTES)
        table = (pa_csv.read_csv if whole else pa_csv.open_csv)(opened(), options, parse, convert)
        batches: Iterable[Any] = [table] if whole else table
        if wanted.where is not None:
            tables = (pa.Table.from_batches([batch]) for batch in table)
            batches = (_filtered(one, wanted.where, str(file)) for one in ([table] if whole else tables))
        return _encoded(batches, table.schema, names, file)

    text = {name: pa.string() for name in names[:2]}
    failure: pa.ArrowInvalid | None = None
    for breaks in (False, True):  # the second time with one thread, which names the row
        # A stream takes a column's type from its first block; a table, from all of its rows.
        for whole in (False, True):
            try:
                return read(not breaks, breaks, text, whole)
            except pa.ArrowInvalid as error:
                failure = error
                if "conversion error" not in str(error):
                    break
        else:
            if len(names) == 3:
                text[names[2]] = pa.string()  # a time that cannot be read is then named by its row
    assert failure is not None
    raise failure


def arrow_table(table: Any) -> Any:
    """A pandas, polars or pyarrow table, or a dict of columns, as a `pyarrow.Table`."""
    try:
        return table if isinstance(table, pa.Table) else pa.table(table)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"table is a {type(table).__name__} that Arrow cannot read: pass a pandas, polars or pyarrow table "
            "or a dict of columns"
        ) from error


def _expression(where: Any) -> Any:
    if not isinstance(where, pc.Expression):
        raise ValueError(
            f"where = {where!r}: give an Arrow expression, such as pyarrow.compute.field('quantity') > 0"
        )
    return where


def _filtered(table: Any, where: Any, place: str) -> Any:
    try:
        return table.filter(_expression(where))
    except pa.ArrowException as error:
        raise ValueError(f"where = {where} cannot be applied to {place}: {error}") from error
