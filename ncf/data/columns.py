"""One column of raw ids or of times, whatever holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def id_column(values: Any, name: str) -> Any:
    """Raw ids as one Arrow array of whole numbers (int64) or strings (large_string).

    Args:
        values: ids, ``[N]``, in any array type or a list.
        name: what to call them in an error.

    Raises:
        ValueError: if an id is missing, a float, or not of the others' type; its row is named.

    Example::

        >>> import numpy as np
        >>> from ncf.data.columns import id_column
        >>> id_column(np.array(["ann", "bob"]), "users").to_pylist()
        ['ann', 'bob']
    """
    column = _arrow(values, name)
    if pa.types.is_floating(column.type):
        row = _first(pc.is_null(column, nan_is_null=True))
        if row is not None:
            raise ValueError(f"{name}[{row}] is NaN or missing: drop the row, or give it an id")
        raise ValueError(
            f"{name} holds floating-point numbers ({name}[0] = {column[0].as_py()}): ids are whole numbers or strings, "
            "convert them first, for instance with .astype('int64')"
        )
    if column.null_count:
        raise ValueError(f"{name}[{_first(column.is_null())}] is missing: drop the row, or give it an id")
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ValueError(f"{name} holds a number above 2**63 - 1: use strings for such ids") from error
    if not any(is_text(column.type) for is_text in _TEXT):
        raise ValueError(
            f"{name} is of type {column.type}: ids are whole numbers or (UTF-8) strings, convert them"
        )
    return column.cast(pa.large_string())


def time_column(values: Any, name: str) -> Tensor:
    """Times as whole numbers; their unit does not matter, only their order.

    Args:
        values: whole numbers, or Arrow, NumPy, pandas or Python times or dates, ``[N]``.
        name: what to call them in an error.

    Returns:
        int64, ``[N]``.

    Raises:
        ValueError: if a time is missing, text or a fraction; its row is named.

    Example::

        >>> from datetime import date
        >>> from ncf.data.columns import time_column
        >>> time_column([date(1970, 1, 1), date(1970, 1, 2)], "timestamps")
        tensor([       0, 86400000])
    """
    column = _arrow(values, name)
    row = _first(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type)))
    if row is not None:
        raise ValueError(f"{name}[{row}] is missing: drop the row, or give it a time")
    if pa.types.is_floating(column.type):
        row = _first(pc.not_equal(column, pc.floor(column)))
        if row is not None:
            raise ValueError(
                f"{name}[{row}] = {column[row].as_py()} is no whole number: choose a unit small enough, "
                "for instance milliseconds"
            )
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if any(is_text(column.type) for is_text in _TEXT):
        raise ValueError(
            f"{name} holds text ({name}[0] = {column[0].as_py()!r}): convert it first, for instance with "
            "pandas.to_datetime"
        )
    try:
        numbers = column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{name} must be whole numbers or times: {error}") from error
    return to_tensor(numbers)


def kind(column: Any) -> str:
    """What an `id_column` holds, in words.

    Example::

        >>> from ncf.data.columns import id_column, kind
        >>> kind(id_column([7, 8], "users"))
        'whole numbers'
    """
    return "strings" if pa.types.is_large_string(column.type) else "whole numbers"


def to_tensor(numbers: Any) -> Tensor:
    """Whole numbers of an Arrow array, none missing, as int64; copied, for Arrow's memory must not be written.

    Example::

        >>> import pyarrow
        >>> from ncf.data.columns import to_tensor
        >>> to_tensor(pyarrow.array([7, 8]))
        tensor([7, 8])
    """
    if isinstance(numbers, pa.ChunkedArray):
        numbers = numbers.combine_chunks()
    return torch.from_numpy(np.from_dlpack(numbers).astype("int64"))  # its to_numpy() would import pandas


def from_tensor(numbers: Tensor) -> Any:
    """Whole numbers as an int64 Arrow array. `pyarrow.array` would import pandas, 60 MB, where there is one.

    Example::

        >>> import torch
        >>> from ncf.data.columns import from_tensor
        >>> from_tensor(torch.tensor([7, 8])).to_pylist()
        [7, 8]
    """
    held = numbers.to(torch.int64).cpu().contiguous().numpy()
    return pa.Array.from_buffers(pa.int64(), len(held), [None, pa.py_buffer(held)])


def _arrow(values: Any, name: str) -> Any:
    """A column as one Arrow array, whatever holds it."""
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
    ) as error:
        raise ValueError(f"{name} cannot be read as one column of one type: {error}") from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _first(condition: Any) -> int | None:
    """The first row where a condition holds."""
    if not pc.any(condition, min_count=0).as_py():  # index() would import pandas to look for nothing
        return None
    row: int = pc.index(condition, True).as_py()
    return row
