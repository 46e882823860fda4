"""Raw ids of one side as numbers of a model, and back: one id without a hash of all, many by Arrow."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ncf.data.columns import id_column, kind, to_tensor
from ncf.data.interactions import Interactions
from ncf.data.vocabulary import HashedVocabulary, Vocabulary


class RawIds:
    """The raw ids of one side, and their numbers in the model."""

    def __init__(self, model: object, seen: object, side: str) -> None:
        self.side = side
        own: Vocabulary | None = getattr(model, f"{side}_ids", None)
        self.vocabulary: Vocabulary | None = getattr(seen, f"{side}_ids", None) if own is None else own
        size = getattr(model, f"num_{side}s", None) if own is None else len(own)
        if size is None:
            size = getattr(seen, f"num_{side}s", None)
        if size is None:
            raise ValueError(
                f"{type(model).__name__} does not say its num_{side}s: give interactions with the same ids"
            )
        self.size = int(size)

    def find(self, raw: Any, name: str) -> Tensor:
        """Numbers of raw ids, ``[N]``, -1 for an unknown one."""
        column = column_of(raw, name)
        if not len(column):
            return torch.empty(0, dtype=torch.int64, device="cpu")
        if self.vocabulary is None:
            if kind(column) == "strings":
                raise ValueError(
                    f"{name} holds strings, but there is no vocabulary: give numbers below {self.size}"
                )
            if len(column) == 1:  # without six calls of PyTorch and Arrow
                number = column[0].as_py()
                number = number if 0 <= number < self.size else -1
                return torch.tensor([number], dtype=torch.int64, device="cpu")
            numbers = to_tensor(column)
            return torch.where((numbers >= 0) & (numbers < self.size), numbers, -1)
        if isinstance(self.vocabulary, HashedVocabulary):
            return self.vocabulary.find(column, name)
        values = self.vocabulary.values
        if column.type != values.type:
            raise ValueError(f"{name} holds {kind(column)}, the vocabulary {kind(values)}: convert them")
        if len(column) * 100 > len(values):  # hashes the whole vocabulary
            return to_tensor(pc.index_in(column, value_set=values).fill_null(-1))
        return torch.tensor(
            [self._search(one) for one in column.to_pylist()], dtype=torch.int64, device="cpu"
        )

    def find_all(self, raw: Any, name: str) -> Tensor:
        """Numbers of raw ids, ``[N]``; all must be known."""
        column = column_of(raw, name)
        numbers = self.find(column, name)
        self.check(numbers, column, name)
        return numbers

    def known(self, raw: Any, name: str) -> Tensor:
        """Numbers of those raw ids that are known."""
        numbers = self.find(raw, name)
        return numbers[numbers >= 0]

    def check(self, numbers: Tensor, column: Any, name: str, remedy: str = "") -> None:
        """Raise for the first unknown id."""
        unknown = (numbers < 0).nonzero()
        if not len(unknown):
            return
        row = int(unknown[0])
        if self.vocabulary is None:
            raise ValueError(
                f"{name}[{row}] = {column[row].as_py()} is out of range for num_{self.side}s = {self.size}: "
                f"ids go from 0 to {self.size - 1}{remedy}"
            )
        raise ValueError(
            f"{name}[{row}] = {column[row].as_py()!r} is not among the {len(self.vocabulary)} known ids{remedy}"
        )

    def check_size(self, ids: Vocabulary | None, interactions: Interactions, name: str) -> None:
        """Raise where one side has numbers only, and not as many as the other."""
        size = getattr(interactions, f"num_{self.side}s")
        if (ids is None or self.vocabulary is None or ids is self.vocabulary) and size != self.size:
            raise ValueError(
                f"num_{self.side}s differs: {self.size} in the model, {size} in {name}; with raw ids on both "
                "sides the numbers need not be equal"
            )

    def renumber(self, numbers: Tensor, ids: Vocabulary | None, name: str) -> Tensor:
        """Numbers in another vocabulary as numbers in this one, -1 where it has no such raw id."""
        own = self.vocabulary
        if ids is None or own is None or ids is own or ids.fingerprint == own.fingerprint:
            return numbers
        return self.find(ids, f"{name}.{self.side}_ids")[numbers]

    def decode(self, numbers: Tensor) -> list[Any]:
        """Raw ids of numbers, ``[N]``."""
        listed: list[Any] = numbers.tolist() if self.vocabulary is None else self.vocabulary.decode(numbers)
        return listed

    @cached_property
    def _order(self) -> Any:
        """Places of the raw ids in ascending order; ``None`` where they are in that order."""
        assert self.vocabulary is not None
        values = self.vocabulary.values
        ascends = len(values) < 2 or pc.all(pc.less(values[:-1], values[1:])).as_py()
        return None if ascends else to_tensor(pc.sort_indices(values))

    def _search(self, raw: Any) -> int:
        assert self.vocabulary is not None
        values, order = self.vocabulary.values, self._order
        place = bisect_left(
            range(len(values)), raw, key=lambda n: values[n if order is None else int(order[n])].as_py()
        )
        if place == len(values):
            return -1
        number = place if order is None else int(order[place])
        return number if values[number].as_py() == raw else -1


def column_of(raw: Any, name: str) -> Any:
    """One raw id, a vocabulary, or a column of raw ids as an Arrow array."""
    if isinstance(raw, Vocabulary):
        return raw.values
    one = raw[0] if isinstance(raw, list) and len(raw) == 1 else raw
    if isinstance(one, (str, int)) and not isinstance(one, bool):
        try:
            return _column_of_one(one)
        except (struct.error, UnicodeError):
            raw = [one]  # for the error that names it
    return id_column(raw, name)


def _column_of_one(raw: str | int) -> Any:
    """Build the array of `id_column` for one id; from a list that imports pandas, where it is installed: 40 MB."""
    if isinstance(raw, int):
        return pa.Array.from_buffers(pa.int64(), 1, [None, pa.py_buffer(struct.pack("q", raw))])
    text = raw.encode()
    ends = struct.pack("qq", 0, len(text))
    return pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(ends), pa.py_buffer(text)])


def pairs(by_user: Mapping[Any, Any], name: str) -> tuple[Any, Any]:
    """Users and items of ``{user: items}``, a row per item."""
    users, items = [], []
    for user, listed in by_user.items():
        column = column_of(listed, f"{name}[{user!r}]")
        users += [user] * len(column)
        items.append(column)
    filled = [column for column in items if len(column)]
    if len({column.type for column in filled}) > 1:
        raise ValueError(f"{name} holds whole numbers and strings as items: convert them")
    return users, pa.concat_arrays(filled) if filled else []
