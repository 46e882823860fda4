"""Raw ids of any type, and the numbers 0 … n − 1 that stand for them inside the library."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor


class Vocabulary:
    """Distinct raw ids; the position of an id is its number.

    Args:
        values: the raw ids, all of one type (integers or strings), none missing, none twice.

    Raises:
        ValueError: if an id is missing, or occurs twice.

    Example::

        >>> from ncf.interactions import Vocabulary
        >>> films = Vocabulary(["Alien", "Brazil", "Casablanca"])
        >>> films.encode(["Casablanca", "Alien"])
        tensor([2, 0])
        >>> films.decode(films.encode(["Brazil"]))
        ['Brazil']
    """

    def __init__(self, values: Any) -> None:
        self.values: Any = arrow_column(values, "values")
        if len(pc.unique(self.values)) != len(self.values):
            counts = pc.value_counts(self.values)
            twice = next(entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1)
            raise ValueError(f"values holds {twice!r} more than once: a vocabulary has each raw id once")

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids of type {self.values.type})"

    def encode(self, raw: Any, name: str = "raw") -> Tensor:
        """The numbers of raw ids.

        Args:
            raw: ids, ``[N]``, of any array type or a list.
            name: what to call them in an error.

        Returns:
            Numbers, ``[N]``, int64.

        Raises:
            ValueError: naming the first id that is not in the vocabulary.
        """
        column = arrow_column(raw, name)
        try:
            column = column.cast(self.values.type)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{name} holds ids of type {column.type}, the vocabulary {self.values.type}"
            ) from error
        found = pc.index_in(column, value_set=self.values)
        if found.null_count:
            row = pc.index(found.is_null(), True).as_py()
            raise ValueError(
                f"{name}[{row}] = {column[row].as_py()!r} is not among the {len(self)} known ids"
            )
        return torch.from_numpy(found.to_numpy(zero_copy_only=False).astype("int64"))

    def decode(self, ids: Tensor) -> list[Any]:
        """The raw ids of numbers, ``[N]``, as a list."""
        decoded: list[Any] = self.values.take(pa.array(ids.cpu().numpy())).to_pylist()
        return decoded

    def restrict(self, ids: Tensor) -> Vocabulary:
        """The vocabulary of some of the ids, in the given order."""
        return Vocabulary(self.values.take(pa.array(ids.cpu().numpy())))


def arrow_column(values: Any, name: str) -> Any:
    """Any one-dimensional column of ids as a pyarrow array without missing values.

    Raises:
        ValueError: if a value is missing, a float or not of the others' type; its row is named.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{name} cannot be read as one column of ids of one type: {error}") from error
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.string())  # what polars gives: not every Arrow function takes it
    if pa.types.is_floating(column.type):
        return _whole_numbers(column, name)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise ValueError(f"{name}[{row}] is missing: drop the row, or give it an id")
    if pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
        raise ValueError(f"{name} is of type {column.type}: ids are whole numbers or strings")
    return column


def _whole_numbers(column: Any, name: str) -> Any:
    """Refuse floats: an id that is not a whole number, or may have been rounded, names nobody."""
    missing = pc.or_kleene(column.is_null(), pc.is_nan(column).fill_null(True))
    row = pc.index(missing, True).as_py()
    if row >= 0:
        raise ValueError(f"{name}[{row}] is NaN or missing: drop the row, or give it an id")
    value = column[0].as_py() if len(column) else None
    raise ValueError(
        f"{name} holds floating-point numbers ({name}[0] = {value}): ids are whole numbers or strings, "
        "convert them first, for instance with .astype('int64')"
    )


def encode_column(values: Any, name: str) -> tuple[Tensor, Vocabulary]:
    """Number the distinct ids of a column in ascending order.

    Returns:
        The numbers, ``[N]``, and the vocabulary.
    """
    column = arrow_column(values, name)
    encoded = column.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[torch.from_numpy(order.to_numpy().astype("int64"))] = torch.arange(len(order))
    codes = torch.from_numpy(encoded.indices.to_numpy(zero_copy_only=False).astype("int64"))
    return rank[codes], Vocabulary(encoded.dictionary.take(order))
