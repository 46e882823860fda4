"""Raw ids of any type, and their numbers 0 … n − 1 inside the library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncf.data.arrow import pa, pc
from ncf.data.columns import codes_of, from_tensor, id_column, kind, places_among, to_tensor
from ncf.utils.checks import check_ids, whole


class Vocabulary:
    """Distinct raw ids; the position of an id is its number.

    Args:
        values: the raw ids, all of one type (whole numbers or strings), none missing, none twice.

    Raises:
        ValueError: if an id is missing, or occurs twice.

    Example::

        >>> from ncf import Vocabulary
        >>> films = Vocabulary(["Alien", "Brazil", "Casablanca"])
        >>> films.encode(["Casablanca", "Alien"])
        tensor([2, 0])
        >>> films.decode(films.encode(["Brazil"]))
        ['Brazil']
        >>> list(films), "Dune" in films
        (['Alien', 'Brazil', 'Casablanca'], False)
    """

    def __init__(self, values: Any) -> None:
        column = id_column(values, "values")
        self.arrays: tuple[Any, ...] = _arrays(column)
        if len(pc.unique(column)) != len(column):
            counts = pc.value_counts(column)
            twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
            raise ValueError(f"values holds {twice!r} more than once: a vocabulary has each raw id once")

    @classmethod
    def _of(cls, column: Any) -> Vocabulary:
        """The vocabulary of an `id_column` whose ids are known to be distinct."""
        made = cls.__new__(cls)
        made.arrays = _arrays(column)
        return made

    @classmethod
    def from_arrays(cls, *arrays: Any) -> Vocabulary:
        """The vocabulary that has these `arrays`; without Arrow where its ids ascend.

        Args:
            arrays: whole numbers, ``[N]``, int64; or offsets, ``[N + 1]``, int64, and texts in UTF-8, uint8.

        Raises:
            ValueError: if the offsets are none, a text is no UTF-8, or an id occurs twice.
        """
        made = cls.__new__(cls)
        made.arrays = arrays
        for text in arrays[1:]:
            ends = arrays[0]
            if not len(ends) or ends[0] != 0 or ends[-1] != len(text) or (ends[1:] < ends[:-1]).any():
                raise ValueError("its offsets do not divide its text")
        if made.ascends:
            return made
        made.values.validate(full=True)
        return cls(made.values)

    @cached_property
    def values(self) -> Any:
        """The ids as an Arrow array of whole numbers (int64) or strings (large_string)."""
        of_type = pa.int64() if len(self.arrays) == 1 else pa.large_string()
        return pa.Array.from_buffers(of_type, len(self), [None, *map(pa.py_buffer, self.arrays)])

    @property
    def kind(self) -> str:
        """The kind of ids, in words."""
        return "whole numbers" if len(self.arrays) == 1 else "strings"

    @cached_property
    def ascends(self) -> bool:
        """Each id is greater than the one before, so that no two are equal."""
        if len(self.arrays) == 1:
            return bool((self.arrays[0][1:] > self.arrays[0][:-1]).all())
        read = self.reader()
        return all(one < following for one, following in pairwise(map(read, range(len(self)))))

    def reader(self) -> Callable[[int], Any]:
        """Return a function from a number to its raw id."""
        first, *texts = [memoryview(array) for array in self.arrays]
        if not texts:
            return first.__getitem__
        (text,) = texts
        return lambda number: str(text[first[number] : first[number + 1]], "utf-8")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "values"}

    def __len__(self) -> int:
        return len(self.arrays[0]) - len(self.arrays[1:])

    def __iter__(self) -> Iterator[int | str]:
        return map(self.reader(), range(len(self)))

    def __contains__(self, raw: object) -> bool:
        if isinstance(raw, bool) or not isinstance(raw, str if self.kind == "strings" else Integral):
            return False
        try:
            return bool(pc.index(self.values, pa.scalar(raw, self.values.type)).as_py() >= 0)
        except (pa.ArrowInvalid, OverflowError, UnicodeError):  # beyond 64 bits, or no UTF-8
            return False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(list(self), dtype)

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.values.__arrow_c_array__(requested_schema)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.kind})"

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
        digest = hashlib.blake2b(f"{self.kind} {len(self)} ".encode(), digest_size=16)
        for array in self.arrays if len(self) else ():
            digest.update(array.data)
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
        return self.find_all(id_column(raw, name), name)

    def find_all(self, column: Any, name: str) -> Tensor:
        """Return the numbers of an `id_column` or of `coded_ids`, ``[N]``.

        Raises:
            ValueError: naming the first id that is not in the vocabulary.
        """
        found = self.find(column, name)
        row = first_row(found < 0)
        if row is not None:
            raw_id = column[row].as_py()
            raise ValueError(f"{name}[{row}] = {raw_id!r} is not among the {len(self)} known ids")
        return found

    def find(self, column: Any, name: str) -> Tensor:
        """Return the numbers of an `id_column` or of `coded_ids`, ``[N]``; -1 for an id not in the vocabulary.

        Raises:
            ValueError: if the column holds another type of ids.
        """
        if len(column) == 0:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        if isinstance(column, pa.DictionaryArray):
            return self.find(column.dictionary, name)[codes_of(column)]
        if column.type != self.values.type:
            raise ValueError(f"{name} holds {kind(column)}, the vocabulary {self.kind}: convert them")
        return places_among(self.values, column)

    def decode(self, ids: Tensor) -> list[Any]:
        """The raw ids of numbers, ``[N]``, as a list.

        Raises:
            ValueError: naming the first number without an id.
        """
        check_ids(ids, "ids", len(self), "the number of known ids")
        return list(map(self.reader(), ids.tolist()))

    def restrict(self, ids: Tensor) -> Vocabulary:
        """The vocabulary of some of the numbers, ``[n]``, in the given order."""
        return Vocabulary._of(self.values.take(from_tensor(ids)))


class HashedVocabulary(Vocabulary):
    """A fixed number of rows for any number of users: an id's number is a hash of its text.

    Two ids may share a row for good; `shared` counts such ids, and `Interactions.shared` holds their number. Every id
    has a row, also one that was never seen, so that no user is unknown. The ids themselves are not kept. Items have
    to be named in a list and cannot be hashed.

    Args:
        rows: how many there are.

    Raises:
        ValueError: if ``rows`` is no positive whole number; for what needs the ids, such as `decode`.

    Example::

        >>> from ncf import HashedVocabulary, Interactions
        >>> visits = Interactions.from_arrays(["ann", "bob", "cat"], ["a", "a", "b"], user_ids=HashedVocabulary(3))
        >>> visits.num_users, visits.shared
        (3, 2)
    """

    def __init__(self, rows: int) -> None:
        self.rows = whole("rows", rows)

    @property
    def arrays(self) -> Any:  # type: ignore[override]
        """Raise: there is no list of the ids."""
        raise ValueError("hashed ids are not kept: any number of ids share a row, and none can be listed")

    def __len__(self) -> int:
        return self.rows

    def __contains__(self, raw: object) -> bool:
        return isinstance(raw, str | Integral) and not isinstance(raw, bool)

    def __repr__(self) -> str:
        return f"HashedVocabulary({self.rows} rows)"

    @cached_property
    def fingerprint(self) -> str:
        """See `Vocabulary.fingerprint`; equal for equal numbers of rows."""
        return hashlib.blake2b(f"hashed {self.rows}".encode(), digest_size=16).hexdigest()

    def find(self, column: Any, name: str) -> Tensor:
        """See `Vocabulary.find`; takes a list, too. Whole numbers and their texts have the same row."""
        if not isinstance(column, list):
            if isinstance(column, pa.DictionaryArray):
                return self.find(column.dictionary, name)[codes_of(column)]
            column = column.to_pylist()
        hashes = [
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % self.rows
            for text in map(str, column)
        ]
        return torch.tensor(hashes, dtype=torch.int64, device="cpu")

    def shared(self, raw: Any) -> int:
        """The number of distinct ids, of raw ones ``[N]``, that share their row with another of them."""
        counts = self.encode(pc.unique(id_column(raw, "raw"))).bincount()
        return int(counts[counts > 1].sum())


def encode_column(column: Any) -> tuple[Tensor, Vocabulary]:
    """Number the distinct ids of an `id_column` or of `coded_ids` in ascending order.

    Returns:
        The numbers, ``[N]``, and the vocabulary.
    """
    encoded = column.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = torch.empty(len(order), dtype=torch.int64, device="cpu")
    rank[to_tensor(order)] = torch.arange(len(order), dtype=torch.int64, device="cpu")
    ids = Vocabulary._of(encoded.dictionary.take(order))
    ids.ascends = True
    return rank[codes_of(encoded)], ids


def _arrays(column: Any) -> tuple[Any, ...]:
    """The arrays of an `id_column`, in its own memory; offsets from 0 on, whatever part of a column it is."""
    _, first, *texts = column.buffers()
    held = np.frombuffer(first or b"", np.int64)[column.offset :][: len(column) + len(texts)]
    if not texts:
        return (held,)
    ends = held if len(held) else np.zeros(1, np.int64)
    text = np.frombuffer(texts[0] or b"", np.uint8)[ends[0] : ends[-1]]
    return ends - ends[0] if ends[0] else ends, text


def first_row(condition: Tensor) -> int | None:
    """The first row, of bool ``[N]``, where a condition holds."""
    return int(condition.nonzero()[0]) if bool(condition.any()) else None


def fingerprint_of(user_ids: Vocabulary | None, item_ids: Vocabulary | None) -> str | None:
    """Fingerprint of both vocabularies, ``"users/items"``; ``None`` where ids are plain numbers.

    A side without a vocabulary is ``-``.
    """
    if user_ids is None and item_ids is None:
        return None
    return "/".join("-" if ids is None else ids.fingerprint for ids in (user_ids, item_ids))


def check_same_ids(this: Any, other: Any, this_name: str, other_name: str, remedy: str = "") -> None:
    """Raise where a number has different raw ids on two sides.

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
