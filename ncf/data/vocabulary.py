"""Raw ids of any type, and the numbers 0 … n − 1 that stand for them inside the library."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor

from ncf.data.columns import from_tensor, id_column, kind, to_tensor
from ncf.utils.checks import check_ids


class Vocabulary:
    """Distinct raw ids; the position of an id is its number.

    Args:
        values: the raw ids, all of one type (whole numbers or strings), none missing, none twice.

    Raises:
        ValueError: if an id is missing, or occurs twice.

    Example::

        >>> from ncf.data.interactions import Vocabulary
        >>> films = Vocabulary(["Alien", "Brazil", "Casablanca"])
        >>> films.encode(["Casablanca", "Alien"])
        tensor([2, 0])
        >>> films.decode(films.encode(["Brazil"]))
        ['Brazil']
    """

    def __init__(self, values: Any) -> None:
        self.values: Any = id_column(values, "values")
        if len(pc.unique(self.values)) != len(self.values):
            counts = pc.value_counts(self.values)
            twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
            raise ValueError(f"values holds {twice!r} more than once: a vocabulary has each raw id once")

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {kind(self.values)})"

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
        column = id_column(raw, name)
        if len(column) == 0:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        if column.type != self.values.type:
            raise ValueError(f"{name} holds {kind(column)}, the vocabulary {kind(self.values)}: convert them")
        found = pc.index_in(column, value_set=self.values)
        if found.null_count:
            row = pc.index(found.is_null(), True).as_py()
            raise ValueError(
                f"{name}[{row}] = {column[row].as_py()!r} is not among the {len(self)} known ids"
            )
        return to_tensor(found)

    def decode(self, ids: Tensor) -> list[Any]:
        """The raw ids of numbers, ``[N]``, as a list.

        Raises:
            ValueError: naming the first number that stands for no id.
        """
        check_ids(ids, "ids", len(self), "the number of known ids")
        decoded: list[Any] = self._take(ids).to_pylist()
        return decoded

    def restrict(self, ids: Tensor) -> Vocabulary:
        """The vocabulary of some of the numbers, ``[n]``, in the given order."""
        return Vocabulary(self._take(ids))

    def _take(self, ids: Tensor) -> Any:
        return self.values.take(from_tensor(ids))


def encode_column(values: Any, name: str) -> tuple[Tensor, Vocabulary]:
    """Number the distinct ids of a column in ascending order.

    Returns:
        The numbers, ``[N]``, and the vocabulary.

    Example::

        >>> from ncf.data.vocabulary import encode_column
        >>> encode_column(["tea", "milk", "tea"], "items")
        (tensor([1, 0, 1]), Vocabulary(2 strings))
    """
    encoded = id_column(values, name).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = torch.empty(len(order), dtype=torch.int64, device="cpu")
    rank[to_tensor(order)] = torch.arange(len(order), dtype=torch.int64, device="cpu")
    return rank[to_tensor(encoded.indices)], Vocabulary(encoded.dictionary.take(order))
