"""Raw ids of any type, and the numbers 0 … n − 1 that stand for them inside the library."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
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

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the ids, their type and their order: equal for equal vocabularies in any process.

        Example::

            >>> from ncf.data import Vocabulary
            >>> Vocabulary([7, 8]).fingerprint == Vocabulary([7, 8]).fingerprint
            True
            >>> Vocabulary([7, 8]).fingerprint == Vocabulary(["7", "8"]).fingerprint
            False
        """
        digest = hashlib.blake2b(f"{kind(self.values)} {len(self)} ".encode(), digest_size=16)
        _, *buffers = self.values.buffers()
        first, length = self.values.offset, len(self)
        starts = np.frombuffer(buffers[0] or b"", np.int64)[first : first + length + len(buffers) - 1]
        if len(buffers) == 1:
            digest.update(starts.data)  # the numbers themselves
        elif length:
            digest.update((starts - starts[0]).data)
            digest.update(memoryview(buffers[1] or b"")[starts[0] : starts[-1]])
        return digest.hexdigest()

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


def fingerprint_of(user_ids: Vocabulary | None, item_ids: Vocabulary | None) -> str | None:
    """Fingerprint of both vocabularies, ``"users/items"``; ``None`` where ids are plain numbers.

    A side without a vocabulary is ``-``.
    """
    if user_ids is None and item_ids is None:
        return None
    return "/".join("-" if ids is None else ids.fingerprint for ids in (user_ids, item_ids))


def check_same_ids(this: Any, other: Any, this_name: str, other_name: str, remedy: str = "") -> None:
    """Raise where the same number stands for different raw ids on two sides.

    A side without vocabularies fits everything: its ids are plain numbers.

    Args:
        this: a model, or `Interactions`, a `Split`, `Candidates` or a `Catalogue`: anything that has a ``fingerprint``,
            or ``user_ids`` and ``item_ids``.
        other: as ``this``.
        this_name: what to call ``this`` in an error.
        other_name: what to call ``other`` in an error.
        remedy: what to do about it; by default, to read the data with the vocabularies of ``this``.

    Raises:
        ValueError: if both have vocabularies, and they differ.

    Example::

        >>> from ncf import Interactions
        >>> from ncf.data import check_same_ids
        >>> spring, summer = (Interactions.from_arrays(["ann"], [drink]) for drink in ("tea", "beer"))
        >>> check_same_ids(spring, spring, "spring", "itself")
        >>> check_same_ids(spring, summer, "spring", "summer")
        Traceback (most recent call last):
        ValueError: spring and summer number different item ids, so that the same number means different items: ...
    """
    prints = [_fingerprint(side) or "-/-" for side in (this, other)]
    for kind_of, own, others in zip(("user", "item"), *(one.split("/") for one in prints), strict=True):
        if own != others and "-" not in (own, others):
            raise ValueError(
                f"{this_name} and {other_name} number different {kind_of} ids, so that the same number means different "
                f"{kind_of}s: "
                + (
                    remedy
                    or f"number the data as {this_name} does, Interactions.from_table(..., user_ids=..., "
                    f"item_ids=...) with the vocabularies of {this_name}"
                )
            )


def _fingerprint(side: Any) -> str | None:
    if hasattr(side, "fingerprint"):
        return side.fingerprint  # type: ignore[no-any-return]
    return fingerprint_of(getattr(side, "user_ids", None), getattr(side, "item_ids", None))
