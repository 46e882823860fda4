"""One column of raw ids or of times, whatever holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncf.data.arrow import pa, pc

_EXACT = 2**53  # up to it, every whole number is a float
_DISTINCT = 1 << 20  # at least so many distinct ids wait before they are merged


def id_column(values: Any, name: str, *, gaps: bool = False) -> Any:
    """Raw ids as one Arrow array of whole numbers (int64) or strings (large_string).

    Args:
        values: ids, ``[N]``, in any array type or a list.
        name: the column's name in an error.
        gaps: leave missing ids in the array; a column of whole floats and gaps holds whole numbers then.

    Raises:
        ValueError: if an id is missing, a float, or not of the others' type; its row is named.
    """
    column = arrow_column(values, name)
    if pa.types.is_floating(column.type):
        if gaps:
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), _EXACT))
            if pc.all(whole, min_count=0).as_py():
                return column.cast(pa.int64())
        row = _first(pc.is_null(column, nan_is_null=True))
        if row is not None and not gaps:
            raise ValueError(
                f"{name}[{row}] is NaN or missing: drop the row (missing='drop'), or give it an id"
            )
        row = 0 if not gaps else pc.index(pc.is_valid(column), True).as_py()
        raise ValueError(
            f"{name} holds floating-point numbers ({name}[{row}] = {column[row].as_py()}): ids are whole numbers or "
            "strings, convert them first, for instance with .astype('int64')"
        )
    if column.null_count and not gaps:
        row = _first(column.is_null())
        raise ValueError(f"{name}[{row}] is missing: drop the row (missing='drop'), or give it an id")
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{name} holds a number above 2**63 - 1: use strings for such ids") from error
    if not is_text(column):
        raise ValueError(
            f"{name} is of type {column.type}: ids are whole numbers or (UTF-8) strings, convert them"
        )
    return column.cast(pa.large_string())


def coded_ids(values: Any, name: str, *, gaps: bool = False) -> Any:
    """Raw ids as an Arrow dictionary array: distinct ids as of `id_column`, and a 32-bit code for each row.

    Args:
        values: ids, ``[N]``, in any array type or a list.
        name: the column's name in an error.
        gaps: as of `id_column`.

    Raises:
        ValueError: as `id_column` raises it.
    """
    if isinstance(values, pa.DictionaryArray) and values.type.index_type == pa.int32():
        ids = values.dictionary
        whole = (pa.types.is_integer(ids.type) or is_text(ids)) and not ids.null_count
        if whole and (gaps or not values.null_count) and len(pc.unique(ids)) == len(ids):
            return pa.DictionaryArray.from_arrays(values.indices, id_column(ids, name))
    return id_column(values, name, gaps=gaps).dictionary_encode()


class IdEncoder:
    """Encodes a column of ids that arrives in pieces, so that no more than codes and distinct ids is in memory.

    Args:
        name: the column's name in an error.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._pieces: list[Any] = []  # with dictionaries of their own
        self._waiting = 0  # ids in those dictionaries
        self._codes: list[Any] = []
        self._ids: Any = None

    def add(self, piece: Any) -> None:
        """Encode the next rows, an Arrow array.

        Raises:
            ValueError: if they are of a type that is not a type of ids.
        """
        if pa.types.is_dictionary(piece.type):
            piece = piece.cast(piece.type.value_type)
        if pa.types.is_null(piece.type):
            piece = piece.cast(pa.int64())
        elif is_text(piece):
            piece = piece.cast(pa.large_string())
        elif not (pa.types.is_integer(piece.type) or pa.types.is_floating(piece.type)):
            id_column(piece, self.name, gaps=True)  # raises
        self._pieces.append(piece.dictionary_encode())
        self._waiting += len(self._pieces[-1].dictionary)
        if self._waiting > max(_DISTINCT, 0 if self._ids is None else len(self._ids)):
            self._merge()

    def finish(self) -> Any:
        """Return a dictionary array of all rows, ids in the order of their first rows; of text for no rows."""
        if self._pieces:
            self._merge()
        if self._ids is None:
            return pa.array([], pa.large_string()).dictionary_encode()
        codes, self._codes = pa.concat_arrays(self._codes), []
        return pa.DictionaryArray.from_arrays(codes, self._ids)

    def _merge(self) -> None:
        known = []
        if self._ids is not None:
            known = [pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self._ids)]
        merged = pa.chunked_array([*known, *self._pieces]).unify_dictionaries()
        self._codes += [chunk.indices for chunk in merged.chunks[len(known) :]]
        self._ids = merged.chunk(0).dictionary
        self._pieces, self._waiting = [], 0


def time_values(values: Any, name: str, *, gaps: bool = False) -> Any:
    """Times as one Arrow array of whole numbers, dates or timestamps; ISO dates in text are read."""
    column = arrow_column(values, name)
    floats = pa.types.is_floating(column.type)
    row = None if gaps else _first(pc.is_null(column, nan_is_null=floats))
    if row is not None:
        raise ValueError(f"{name}[{row}] is missing: drop the row (missing='drop'), or give it a time")
    if floats:
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        row = _first(pc.not_equal(column, pc.floor(column)))
        if row is not None:
            raise ValueError(
                f"{name}[{row}] = {column[row].as_py()} is no whole number: choose a unit small enough, "
                "for instance milliseconds"
            )
        row = _first(pc.greater(pc.abs(column), _EXACT))
        if row is not None:
            raise ValueError(
                f"{name}[{row}] = {column[row].as_py()} is a float too large to be exact: times must be whole "
                "numbers or times"
            )
        return column.cast(pa.int64())
    if is_text(column):
        return _times_of_text(column, name)
    if pa.types.is_boolean(column.type) or pa.types.is_decimal(column.type):
        raise ValueError(f"{name} is of type {column.type}: times must be whole numbers or times")
    return column


def time_column(values: Any, name: str) -> Tensor:
    """Times as whole numbers; their unit does not matter, only their order.

    Args:
        values: whole numbers, ISO dates in text, or Arrow, NumPy, pandas or Python times or dates, ``[N]``.
        name: the column's name in an error.

    Returns:
        int64, ``[N]``: milliseconds for dates, else in the unit of the column.

    Raises:
        ValueError: if a time is missing, a fraction or text of another form; its row is named.
    """
    column = time_values(values, name)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    try:
        numbers = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{name} must be whole numbers or times: {error}") from error
    return to_tensor(numbers)


def kind(column: Any) -> str:
    """The kind of ids that an `id_column` holds, in words."""
    return "strings" if is_text(column) else "whole numbers"


def is_text(column: Any) -> bool:
    """Return whether a column holds strings."""
    return is_text_type(column.type)


def is_text_type(of_type: Any) -> bool:
    """Return whether an Arrow type is one of strings."""
    types = pa.types
    return bool(types.is_string(of_type) or types.is_large_string(of_type) or types.is_string_view(of_type))


def to_tensor(numbers: Any) -> Tensor:
    """Whole numbers of an Arrow array, none missing, as int64; copied, for Arrow's memory must not be written."""
    if isinstance(numbers, pa.ChunkedArray):
        numbers = numbers.combine_chunks()
    return torch.from_numpy(np.from_dlpack(numbers).astype("int64"))  # its to_numpy() would import pandas


def places_among(values: Any, column: Any) -> Tensor:
    """Place of each of a column's values among distinct ones, int64; -1 for one that is not there."""
    none = from_tensor(torch.full((1,), -1, dtype=torch.int64, device="cpu"))[0].cast(pa.int32())
    return to_tensor(
        pc.index_in(column, value_set=values).fill_null(none)
    )  # for -1 Arrow would import pandas


def codes_of(column: Any) -> Tensor:
    """Codes of an Arrow dictionary array without gaps, int32."""
    return torch.from_numpy(np.from_dlpack(column.indices).astype("int32"))


def from_tensor(numbers: Tensor) -> Any:
    """Whole numbers as an int64 Arrow array. `pyarrow.array` would import pandas, 60 MB, where there is one."""
    held = numbers.to(torch.int64).cpu().contiguous().numpy()
    return pa.Array.from_buffers(pa.int64(), len(held), [None, pa.py_buffer(held)])


def from_texts(texts: list[bytes]) -> Any:
    """Texts in UTF-8 as an Arrow array of strings, without `pyarrow.array`, as `from_tensor`."""
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers)


def arrow_column(values: Any, name: str) -> Any:
    """A column as one Arrow array, whatever holds it."""
    if isinstance(values, str | bytes | set | frozenset):
        raise ValueError(f"{name} cannot be read as one column: got a {type(values).__name__}, pass a list")
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        OverflowError,
        TypeError,
        UnicodeError,
    ) as error:
        raise ValueError(
            f"{name} cannot be read as one column of one type: {error}; pass a list or an array of ids, such as [196]"
        ) from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column, pa.ChunkedArray):
        if is_text(column):
            column = column.cast(pa.large_string())  # 32-bit offsets end at 2 GiB of text
        column = column.combine_chunks()
    return column


def _times_of_text(column: Any, name: str) -> Any:
    # The types, and their order, that Arrow's CSV reader tries too: files and tables give the same numbers.
    times = [pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us"), pa.timestamp("us", "UTC")]
    types = [pa.int64(), pa.date32(), *times]
    for of_type in types:
        try:
            return column.cast(of_type)
        except pa.ArrowInvalid:
            continue
    # The type that fits most of the rows before its first misfit: that row is the one to look at.
    row = max(_first_failing(column, of_type) for of_type in types)
    raise ValueError(
        f"{name}[{row}] = {column[row].as_py()!r} is no time: write every time as "
        "'2025-12-31 23:59:59' (ISO 8601), or convert them first, for instance with pandas.to_datetime"
    )


def _first_failing(column: Any, of_type: Any) -> int:
    """The first row that cannot be cast; there is one."""
    start, end = 0, len(column)
    while end - start > 1:
        middle = (start + end) // 2
        try:
            column.slice(start, middle - start).cast(of_type)
        except pa.ArrowInvalid:
            end = middle
        else:
            start = middle
    return start


def _first(condition: Any) -> int | None:
    """The first row where a condition holds."""
    if not pc.any(condition, min_count=0).as_py():  # index() would import pandas to look for nothing
        return None
    row: int = pc.index(condition, True).as_py()
    return row
