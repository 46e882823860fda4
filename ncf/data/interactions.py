"""The record of who interacted with what: users, items and times as columns of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor

from ncf.data.arrow import pc
from ncf.data.columns import coded_ids, time_column, time_values
from ncf.data.filters import (
    drop_duplicates_keep_latest,
    k_core,
    lists_of_keys,
    sorted_keys,
)
from ncf.data.readers import Wanted, read_files, read_table
from ncf.data.vocabulary import HashedVocabulary, Vocabulary, encode_column, fingerprint_of
from ncf.utils.checks import check_choice, check_ids, whole
from ncf.utils.html import html_table

__all__ = ["Interactions", "Vocabulary"]

_GAPS = ("raise", "drop")


@dataclass(frozen=True, eq=False)
class Interactions:
    """Occurrences of ``<user, item>``, each pair once, in file order.

    Use `from_arrays`, `from_table` or `from_files` for raw data: they number the ids and keep a pair
    that occurs more than once at its latest time. The constructor takes ids that are numbered already.

    Args:
        users: ``[N]``, int64, in ``[0, num_users)``.
        items: ``[N]``, int64, in ``[0, num_items)``.
        timestamps: ``[N]``, int64, in any unit; ``None`` where the order of the rows is the only time.
        num_users: size of the user vocabulary.
        num_items: size of the item vocabulary.
        user_ids: the raw ids behind the users.
        item_ids: the raw ids behind the items.
        dropped: numbers of rows that were left out while reading, by reason.
        shared: distinct users who share a row with another one, where ``user_ids`` is a `HashedVocabulary`.

    Raises:
        ValueError: if lengths differ, an id is no int64 or out of range, or there are no rows; the argument,
            the row and the value are named. A pair that occurs twice is found by `csr`.

    Example::

        >>> from ncf import Interactions
        >>> bought = Interactions.from_arrays(["ann", "bob", "bob"], ["tea", "tea", "milk"])
        >>> bought
        Interactions(3 rows, 2 users, 2 items)
        >>> bought.items, bought.item_ids.decode(bought.items)
        (tensor([1, 1, 0]), ['tea', 'tea', 'milk'])
    """

    users: Tensor
    items: Tensor
    timestamps: Tensor | None
    num_users: int
    num_items: int
    user_ids: Vocabulary | None = None
    item_ids: Vocabulary | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    shared: int = 0
    _csr: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, size in (("users", self.num_users), ("items", self.num_items)):
            _check_column(getattr(self, name), name, size)
        if len(self.users) != len(self.items):
            raise ValueError(f"users has {len(self.users)} rows, items {len(self.items)}: they must be equal")
        if len(self.users) == 0:
            raise ValueError("there are no interactions: users and items are empty")
        if self.num_users * self.num_items >= 2**63:
            raise ValueError(f"{self.num_users} users × {self.num_items} items do not fit 63 bits")
        times = self.timestamps
        if times is not None and not (
            isinstance(times, Tensor) and times.dtype == torch.int64 and times.shape == self.users.shape
        ):
            raise ValueError(
                f"timestamps must be an int64 tensor of shape {tuple(self.users.shape)}, got {_describe(times)}"
            )
        for name, size in (("user_ids", self.num_users), ("item_ids", self.num_items)):
            vocabulary: Vocabulary | None = getattr(self, name)
            if vocabulary is not None and len(vocabulary) != size:
                raise ValueError(f"{name} has {len(vocabulary)} ids for {size}: it must have one for each")

    @classmethod
    def from_arrays(
        cls,
        users: Any,
        items: Any,
        timestamps: Any = None,
        *,
        missing: Literal["raise", "drop"] = "raise",
        user_ids: Vocabulary | None = None,
        item_ids: Vocabulary | None = None,
        unknown: Literal["raise", "drop"] = "raise",
        min_user_count: int = 0,
        min_item_count: int = 0,
    ) -> Interactions:
        """Number raw ids, and keep each pair once.

        Args:
            users: raw user ids, ``[N]``: whole numbers or strings, in any array type or a list.
            items: raw item ids, ``[N]``.
            timestamps: whole numbers, times, dates or ISO dates in text, ``[N]``. Without them the order of rows is
                the time.
            missing: ``"raise"`` for a row without a user, an item or a time, or ``"drop"`` to leave such rows out;
                `dropped` counts them.
            user_ids: number users as this vocabulary does, for instance as a model does; by default by the rows. A
                `HashedVocabulary` gives any number of users a fixed number of rows.
            item_ids: number items as this vocabulary does.
            unknown: ``"raise"`` for an id that is not in the given vocabulary, or ``"drop"`` to leave its rows out.
            min_user_count: leave out users with fewer items; repeated, with the next, until all that is
                left has enough (the k-core).
            min_item_count: leave out items with fewer users.

        Returns:
            Rows in the given order, ids numbered in ascending order of the raw ids. A pair that occurs more
            than once is kept in the row of its latest time, the last row among equals.

        Raises:
            ValueError: for unequal lengths, missing, unknown, NaN or float ids, or if nothing is left.
        """
        columns = {"users": users, "items": items}
        if timestamps is not None:
            columns["timestamps"] = timestamps
        return cls._number(columns, missing, user_ids, item_ids, unknown, min_user_count, min_item_count)

    @classmethod
    def _number(
        cls,
        columns: dict[str, Any],
        missing: str,
        user_ids: Vocabulary | None,
        item_ids: Vocabulary | None,
        unknown: str,
        min_user_count: int,
        min_item_count: int,
    ) -> Interactions:
        """Interactions of columns of raw users, raw items and, where there are any, times, by their names."""
        check_choice("missing", missing, _GAPS)
        check_choice("unknown", unknown, _GAPS)
        if isinstance(item_ids, HashedVocabulary):
            raise ValueError("item_ids is hashed, and a list could not name its items: hash users only")
        min_user_count = whole("min_user_count", min_user_count, least=0)
        min_item_count = whole("min_item_count", min_item_count, least=0)
        gaps = missing == "drop"
        names = list(columns)
        parsed = [
            (coded_ids if place < 2 else time_values)(column, name, gaps=gaps)
            for place, (name, column) in enumerate(columns.items())
        ]
        for name, column in zip(names[1:], parsed[1:], strict=True):
            if len(column) != len(parsed[0]):
                raise ValueError(
                    f"{names[0]} has {len(parsed[0])} rows, {name} {len(column)}: they must be equal"
                )
        num_rows, dropped = len(parsed[0]), {}
        if gaps and any(column.null_count for column in parsed):
            dropped = {
                f"{name} missing": column.null_count for name, column in zip(names, parsed, strict=True)
            }
            there = reduce(pc.and_, [column.is_valid() for column in parsed])
            parsed = [column.filter(there) for column in parsed]
        shared = 0
        if isinstance(user_ids, HashedVocabulary):
            shared = user_ids.shared(parsed[0].dictionary.take(parsed[0].indices.unique()))
        given, numbers, ids = (user_ids, item_ids), [], []
        for name, column, vocabulary in zip(names, parsed, given, strict=False):
            if vocabulary is None:
                encoded, vocabulary = encode_column(column)
            elif unknown == "drop":
                encoded = vocabulary.find(column, name)
                dropped[f"{name} unknown"] = int((encoded < 0).sum())
            else:
                encoded = vocabulary.find_all(column, name)
            numbers.append(encoded)
            ids.append(vocabulary)
        times = None if len(parsed) < 3 else time_column(parsed[2], names[2])
        columns.clear()  # of a large log, this is the memory that the next steps need
        parsed.clear()
        known = (numbers[0] >= 0) & (numbers[1] >= 0)
        if not bool(known.all()):
            numbers = [column[known] for column in numbers]
            times = None if times is None else times[known]
        rows = drop_duplicates_keep_latest(numbers[0] * len(ids[1]) + numbers[1], times)
        if min_user_count > 1 or min_item_count > 1:
            every = torch.arange(len(numbers[0]), dtype=torch.int64, device="cpu") if rows is None else rows
            rows = k_core(numbers[0], numbers[1], every, min_user_count, min_item_count)
            if len(rows) == 0 < len(numbers[0]):
                raise ValueError(
                    f"no interaction is left with min_user_count = {min_user_count} and "
                    f"min_item_count = {min_item_count}: lower them"
                )
        if rows is not None:
            numbers = [column[rows] for column in numbers]
            times = None if times is None else times[rows]
        for side in (0, 1):
            if given[side] is None:
                numbers[side], ids[side] = _renumber(numbers[side], ids[side])
        dropped = {reason: count for reason, count in dropped.items() if count}
        if len(numbers[0]) == 0 and dropped:
            raise ValueError(f"there are no interactions left: {_reasons(dropped)} of {num_rows} rows")
        users, items = numbers
        return cls(users, items, times, len(ids[0]), len(ids[1]), ids[0], ids[1], dropped, shared)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        user: str = "user",
        item: str = "item",
        timestamp: str | None = None,
        where: Any = None,
        missing: Literal["raise", "drop"] = "raise",
        user_ids: Vocabulary | None = None,
        item_ids: Vocabulary | None = None,
        unknown: Literal["raise", "drop"] = "raise",
        min_user_count: int = 0,
        min_item_count: int = 0,
    ) -> Interactions:
        """Read columns of anything that Arrow can read: pandas, polars, pyarrow, a dict of columns.

        Args:
            table: the table.
            user: name of the column of user ids.
            item: name of the column of item ids.
            timestamp: name of the column of times; by default ``"timestamp"`` if there is such a column, else
                the order of rows is the time.
            where: rows to read, an Arrow expression over any columns of the table; by default all.
            missing: see `from_arrays`.
            user_ids: see `from_arrays`.
            item_ids: see `from_arrays`.
            unknown: see `from_arrays`.
            min_user_count: see `from_arrays`.
            min_item_count: see `from_arrays`.

        Raises:
            ValueError: if a column is missing, and as in `from_arrays`.

        Example::

            >>> import pyarrow.compute as pc
            >>> from ncf import Interactions
            >>> orders = {"who": [7, 7, 9, None], "what": ["x", "y", "x", "y"], "pieces": [1, 2, -1, 1]}
            >>> Interactions.from_table(orders, user="who", item="what", where=pc.field("pieces") > 0, missing="drop")
            Interactions(2 rows, 1 users, 2 items; left out: 1 who missing)
        """
        check_choice("missing", missing, _GAPS)
        columns = read_table(table, Wanted(user, item, timestamp, where, missing == "drop"))
        return cls._number(columns, missing, user_ids, item_ids, unknown, min_user_count, min_item_count)

    @classmethod
    def from_files(
        cls,
        paths: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        user: str = "user",
        item: str = "item",
        timestamp: str | None = None,
        columns: Sequence[str] | None = None,
        separator: str | None = None,
        where: Any = None,
        missing: Literal["raise", "drop"] = "raise",
        user_ids: Vocabulary | None = None,
        item_ids: Vocabulary | None = None,
        unknown: Literal["raise", "drop"] = "raise",
        min_user_count: int = 0,
        min_item_count: int = 0,
    ) -> Interactions:
        """Read CSV, TSV or Parquet files, text also if compressed (``.gz``, ``.bz2``, ``.zst``).

        Ids in text files are whole numbers if every one, in every file, is written as one; else they are strings
        as they stand, so that ``007`` stays ``007``. A field is missing only if it is empty. To read them otherwise,
        use pandas or polars and `from_table`.

        Args:
            paths: a file, a glob such as ``"logs/2024-*.parquet"``, or several of them; the files of a glob are
                read in the order of their names.
            user: name of the column of user ids.
            item: name of the column of item ids.
            timestamp: name of the column of times; by default ``"timestamp"`` if there is such a column, else
                the order of rows is the time.
            columns: the names of all columns, for text files without a header line.
            separator: of text files; by default a tab for ``.tsv``, ``.tab``, ``.inter``, ``.rating``, else a comma.
            where: rows to read, an Arrow expression over any columns of the files; by default all. In text files the
                columns of ids hold strings.
            missing: see `from_arrays`.
            user_ids: see `from_arrays`.
            item_ids: see `from_arrays`.
            unknown: see `from_arrays`.
            min_user_count: see `from_arrays`.
            min_item_count: see `from_arrays`.

        Raises:
            FileNotFoundError: if nothing matches.
            ValueError: for a malformed line (file and row are named), a missing column, and as in `from_arrays`.
        """
        check_choice("missing", missing, _GAPS)
        wanted = Wanted(user, item, timestamp, where, missing == "drop")
        read = read_files(paths, wanted, columns=columns, separator=separator)
        return cls._number(read, missing, user_ids, item_ids, unknown, min_user_count, min_item_count)

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        note = f"; left out: {_reasons(self.dropped)}" if self.dropped else ""
        note += f"; {self.shared} users share a row" if self.shared else ""
        return f"Interactions({len(self)} rows, {self.num_users} users, {self.num_items} items{note})"

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of both vocabularies, see `Vocabulary.fingerprint`; ``None`` where ids are plain numbers."""
        return fingerprint_of(self.user_ids, self.item_ids)

    def _repr_html_(self) -> str:
        rows = [[f"{count:,}" for count in (len(self), self.num_users, self.num_items)]]
        return html_table(["interactions", "users", "items"], rows)

    def csr(self) -> tuple[Tensor, Tensor]:
        """The items of each user, ascending; worked out once.

        Returns:
            ``offsets [num_users + 1]`` and ``items [N]``, both int64: user u has ``items[offsets[u]:offsets[u + 1]]``.

        Raises:
            ValueError: if a pair occurs twice.
        """
        if not self._csr:
            keys = (self.users * self.num_items).add_(self.items)
            keys = sorted_keys(keys, below=self.num_users * self.num_items)
            twice = keys[1:] == keys[:-1]
            if bool(twice.any()):
                user, item = divmod(int(keys[1:][twice][0]), self.num_items)
                raise ValueError(
                    f"user {user} and item {item} occur together more than once: Interactions.from_arrays keeps each "
                    "pair once"
                )
            self._csr.append(lists_of_keys(keys, self.num_users, self.num_items))
        return self._csr[0]

    def item_counts(self) -> Tensor:
        """Number of users of each item, ``[num_items]``, int64."""
        return torch.bincount(self.items, minlength=self.num_items)

    def take(self, rows: Tensor) -> Interactions:
        """Some of the rows, with the same vocabularies.

        Args:
            rows: row numbers, ``[R]``, int64, or one bool per row, ``[N]``.

        Returns:
            The chosen rows in the order of ``rows``.
        """
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]  # found once, not once per column
        timestamps = None if self.timestamps is None else self.timestamps[rows]
        return replace(
            self, users=self.users[rows], items=self.items[rows], timestamps=timestamps, dropped={}, shared=0
        )


def _check_column(ids: Any, name: str, size: int) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        raise ValueError(
            f"{name} must be an int64 tensor with one dimension, got {_describe(ids)}: "
            "Interactions.from_arrays takes ids of any type"
        )
    if not ids.is_cpu:
        raise ValueError(f"{name} is on {ids.device}: interactions stay on the CPU, pass {name}.cpu()")
    check_ids(ids, name, size, f"num_{name}", remedy="Interactions.from_arrays numbers raw ids")


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _renumber(numbers: Tensor, ids: Vocabulary) -> tuple[Tensor, Vocabulary]:
    """Close the gaps that left-out ids leave."""
    present = numbers.bincount(minlength=len(ids)) > 0  # [len(ids)]
    if bool(present.all()):
        return numbers, ids
    return (present.cumsum(0) - 1)[numbers], ids.restrict(present.nonzero()[:, 0])
