"""Raw ids of one side as numbers of a model, and back: a few ids in Python alone, many by Arrow."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ncf.data.arrow import pa, pc
from ncf.data.columns import from_tensor, from_texts, id_column, kind, places_among, to_tensor
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
        return self.find_column(column_of(raw, name), name)

    def find_column(self, column: Any, name: str) -> Tensor:
        """Numbers of what `column_of` returned, ``[N]``, -1 for an unknown id."""
        if not len(column):
            return torch.empty(0, dtype=torch.int64, device="cpu")
        if isinstance(self.vocabulary, HashedVocabulary):
            return self.vocabulary.find(column, name)
        listed = isinstance(column, list)
        held = ("strings" if isinstance(column[0], str) else "whole numbers") if listed else kind(column)
        if self.vocabulary is None:
            if held == "strings":
                raise ValueError(
                    f"{name} holds strings, but there is no vocabulary: give numbers below {self.size}"
                )
            numbers = torch.tensor(column, dtype=torch.int64, device="cpu") if listed else to_tensor(column)
            return torch.where((numbers >= 0) & (numbers < self.size), numbers, -1)
        if held != self.vocabulary.kind:
            raise ValueError(f"{name} holds {held}, the vocabulary {self.vocabulary.kind}: convert them")
        if len(column) > 1 and len(column) * 100 > len(self.vocabulary):  # hashes the whole vocabulary
            return places_among(self.vocabulary.values, _as_arrow(column))
        few = column if listed else column.to_pylist()
        return torch.tensor([self._search(one) for one in few], dtype=torch.int64, device="cpu")

    def find_all(self, raw: Any, name: str) -> Tensor:
        """Numbers of raw ids, ``[N]``; all must be known."""
        column = column_of(raw, name)
        numbers = self.find_column(column, name)
        self.check(numbers, column, name)
        return numbers

    def known(self, raw: Any, name: str) -> Tensor:
        """Numbers of those raw ids that are known."""
        numbers = self.find(raw, name)
        return numbers[numbers >= 0]

    def check(self, numbers: Tensor, column: Any, name: str, remedy: str = "") -> None:
        """Raise for the first unknown id."""
        if not len(numbers) or int(numbers.min()) >= 0:
            return
        row = int((numbers < 0).nonzero()[0])
        raw = column[row] if isinstance(column, list) else column[row].as_py()
        if self.vocabulary is None:
            raise ValueError(
                f"{name}[{row}] = {raw} is out of range for num_{self.side}s = {self.size}: "
                f"ids go from 0 to {self.size - 1}{remedy}"
            )
        raise ValueError(f"{name}[{row}] = {raw!r} is not among the {len(self.vocabulary)} known ids{remedy}")

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
        if self.vocabulary is None:
            return numbers.tolist()
        return list(map(self.vocabulary.reader(), numbers.tolist()))

    @cached_property
    def _order(self) -> Any:
        """Places of the raw ids in ascending order; ``None`` where they are in that order."""
        assert self.vocabulary is not None
        return None if self.vocabulary.ascends else to_tensor(pc.sort_indices(self.vocabulary.values))

    def _search(self, raw: Any) -> int:
        assert self.vocabulary is not None
        order, read, size = self._order, self.vocabulary.reader(), len(self.vocabulary)
        place = bisect_left(range(size), raw, key=read if order is None else lambda n: read(int(order[n])))
        if place == size:
            return -1
        number = place if order is None else int(order[place])
        return number if read(number) == raw else -1


def column_of(raw: Any, name: str) -> Any:
    """Raw ids as a list of whole numbers or of strings, if that is what they are, else as an Arrow array."""
    if isinstance(raw, Vocabulary):
        return raw.values
    listed: Any = [raw] if isinstance(raw, (str, int)) else raw
    kinds = set(map(type, listed)) if isinstance(listed, list) else set()
    if kinds == {int} and min(listed) >= -(2**63) and max(listed) < 2**63:
        return listed
    if kinds == {str}:
        with suppress(UnicodeError):  # `id_column` says which id it is
            "".join(listed).encode()
            return listed
    return id_column(listed, name)


def _as_arrow(column: Any) -> Any:
    """Raw ids that `column_of` returned, as an Arrow array."""
    if not isinstance(column, list):
        return column
    if isinstance(column[0], str):
        return from_texts([text.encode() for text in column])
    return from_tensor(torch.tensor(column, dtype=torch.int64, device="cpu"))


def pairs(by_user: Mapping[Any, Any], name: str) -> tuple[Any, Any]:
    """Users and items of ``{user: items}``, a row per item."""
    users, items = [], []
    for user, listed in by_user.items():
        column = column_of(listed, f"{name}[{user!r}]")
        users += [user] * len(column)
        items.append(column)
    filled = [_as_arrow(column) for column in items if len(column)]
    if len({column.type for column in filled}) > 1:
        raise ValueError(f"{name} holds whole numbers and strings as items: convert them")
    return users, pa.concat_arrays(filled) if filled else []
