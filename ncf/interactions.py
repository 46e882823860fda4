"""The record of who touched what: users, items and times as columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ncf.vocabulary import Vocabulary, encode_column

__all__ = ["Interactions", "Vocabulary"]


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

    Raises:
        ValueError: if lengths differ, an id is no int64 or out of range, a pair occurs twice, or there are
            no rows. The argument, the row and the value are named.

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
    _csr: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, size in (("users", self.num_users), ("items", self.num_items)):
            ids: Tensor = getattr(self, name)
            if ids.dtype != torch.int64 or ids.dim() != 1:
                raise ValueError(
                    f"{name} must be an int64 tensor with one dimension, got {ids.dtype} {tuple(ids.shape)}"
                )
            _check_range(ids, name, size)
        if len(self.users) != len(self.items):
            raise ValueError(f"users has {len(self.users)} rows, items {len(self.items)}: they must be equal")
        if self.timestamps is not None and (
            self.timestamps.dtype != torch.int64 or self.timestamps.shape != self.users.shape
        ):
            raise ValueError(
                f"timestamps must be int64 of shape {tuple(self.users.shape)}, "
                f"got {self.timestamps.dtype} {tuple(self.timestamps.shape)}"
            )

    @classmethod
    def from_arrays(
        cls,
        users: Any,
        items: Any,
        timestamps: Any = None,
        *,
        min_user_count: int = 0,
        min_item_count: int = 0,
    ) -> Interactions:
        """Number raw ids, and keep each pair once.

        Args:
            users: raw user ids, ``[N]``: whole numbers or strings, in any array type or a list.
            items: raw item ids, ``[N]``.
            timestamps: whole numbers or Arrow/NumPy times, ``[N]``. Without them the order of rows is the time.
            min_user_count: leave out users with fewer items; repeated, with the next, until all that is
                left has enough.
            min_item_count: leave out items with fewer users.

        Returns:
            Ids numbered in ascending order of the raw ids. A pair that occurs more than once is kept at
            its latest time (the last row among equals).

        Raises:
            ValueError: for unequal lengths, missing, NaN or float ids, or if nothing is left.
        """
        user_numbers, user_ids = encode_column(users, "users")
        item_numbers, item_ids = encode_column(items, "items")
        times = None if timestamps is None else _times(timestamps)
        for name, column in (("items", item_numbers), ("timestamps", times)):
            if column is not None and len(column) != len(user_numbers):
                raise ValueError(
                    f"users has {len(user_numbers)} rows, {name} {len(column)}: they must be equal"
                )
        if len(user_numbers) == 0:
            raise ValueError("there are no interactions: users and items are empty")
        rows = _latest(user_numbers * len(item_ids) + item_numbers, times)
        rows = rows[_core(user_numbers[rows], item_numbers[rows], min_user_count, min_item_count)]
        if len(rows) == 0:
            raise ValueError(
                f"no interaction is left with min_user_count = {min_user_count} and "
                f"min_item_count = {min_item_count}: lower them"
            )
        kept_users, user_numbers = user_numbers[rows].unique(return_inverse=True)
        kept_items, item_numbers = item_numbers[rows].unique(return_inverse=True)
        return cls(
            user_numbers,
            item_numbers,
            None if times is None else times[rows],
            len(kept_users),
            len(kept_items),
            user_ids.restrict(kept_users),
            item_ids.restrict(kept_items),
        )

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        user: str = "user",
        item: str = "item",
        timestamp: str | None = None,
        min_user_count: int = 0,
        min_item_count: int = 0,
    ) -> Interactions:
        """Read columns of anything that Arrow can read: pandas, polars, pyarrow, a dict of columns.

        Args:
            table: the table.
            user: name of the column of user ids.
            item: name of the column of item ids.
            timestamp: name of the column of times; ``None`` if the order of rows is the time.
            min_user_count: see `from_arrays`.
            min_item_count: see `from_arrays`.

        Raises:
            ValueError: if a column is missing, and as in `from_arrays`.

        Example::

            >>> from ncf import Interactions
            >>> Interactions.from_table({"who": [7, 7, 9], "what": ["x", "y", "x"]}, user="who", item="what")
            Interactions(3 rows, 2 users, 2 items)
        """
        import pyarrow as pa

        if not isinstance(table, pa.Table):
            table = pa.table(table)
        wanted = [name for name in (user, item, timestamp) if name is not None]
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise ValueError(
                f"column {missing[0]!r} is missing: the table has {', '.join(map(repr, table.column_names))}"
            )
        columns = [table[name] for name in wanted]
        return cls.from_arrays(*columns, min_user_count=min_user_count, min_item_count=min_item_count)

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
        min_user_count: int = 0,
        min_item_count: int = 0,
    ) -> Interactions:
        """Read CSV, TSV or Parquet files, by name, in the order of their names.

        Args:
            paths: a file, a glob such as ``"logs/2024-*.parquet"``, or several of them.
            user: name of the column of user ids.
            item: name of the column of item ids.
            timestamp: name of the column of times; ``None`` if the order of rows is the time.
            columns: the names of all columns, for text files without a header line.
            separator: of text files; by default a tab for ``.tsv`` and ``.tab``, else a comma.
            min_user_count: see `from_arrays`.
            min_item_count: see `from_arrays`.

        Raises:
            FileNotFoundError: if nothing matches.
            ValueError: for a malformed line (file and row are named), a missing column, and as in `from_arrays`.
        """
        from ncf.datasets.tables import read_tables

        wanted = [name for name in (user, item, timestamp) if name is not None]
        table = read_tables(paths, wanted, columns=columns, separator=separator)
        return cls.from_table(
            table,
            user=user,
            item=item,
            timestamp=timestamp,
            min_user_count=min_user_count,
            min_item_count=min_item_count,
        )

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return f"Interactions({len(self)} rows, {self.num_users} users, {self.num_items} items)"

    def csr(self) -> tuple[Tensor, Tensor]:
        """The items of each user, ascending; worked out once.

        Returns:
            ``offsets [num_users + 1]`` and ``items [N]``, both int64: user u has ``items[offsets[u]:offsets[u + 1]]``.
        """
        if not self._csr:
            keys = (self.users * self.num_items + self.items).sort().values
            offsets = torch.zeros(self.num_users + 1, dtype=torch.int64, device=keys.device)
            torch.cumsum(torch.bincount(self.users, minlength=self.num_users), 0, out=offsets[1:])
            self._csr.append((offsets, keys % self.num_items))
        return self._csr[0]

    def item_counts(self) -> Tensor:
        """How many users touched each item, ``[num_items]``, int64."""
        return torch.bincount(self.items, minlength=self.num_items)

    def take(self, rows: Tensor) -> Interactions:
        """Some of the rows, with the same vocabularies.

        Args:
            rows: row numbers, or one bool per row.
        """
        timestamps = None if self.timestamps is None else self.timestamps[rows]
        return replace(self, users=self.users[rows], items=self.items[rows], timestamps=timestamps)


def _check_range(ids: Tensor, name: str, size: int) -> None:
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= size):
        row = int(((ids < 0) | (ids >= size)).nonzero()[0])
        raise ValueError(
            f"{name}[{row}] = {int(ids[row])} is out of range for num_{name} = {size}: ids go from 0 to {size - 1}; "
            "Interactions.from_arrays numbers raw ids"
        )


def _times(timestamps: Any) -> Tensor:
    """Times as whole numbers; the unit does not matter, only the order does."""
    import pyarrow as pa

    if isinstance(timestamps, Tensor):
        timestamps = timestamps.cpu().numpy()
    column = timestamps if isinstance(timestamps, pa.Array | pa.ChunkedArray) else pa.array(timestamps)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    try:
        if column.null_count:
            raise pa.ArrowInvalid(f"row {column.is_null().index(True).as_py()} is missing")
        numbers = column.cast("int64").to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"timestamps must be whole numbers or times, none missing: {error}") from error
    return torch.from_numpy(numbers.copy())


def _latest(pairs: Tensor, times: Tensor | None) -> Tensor:
    """The row of each distinct pair's latest occurrence, in file order."""
    order = torch.arange(len(pairs)) if times is None else times.argsort(stable=True)
    order = order[pairs[order].argsort(stable=True)]  # by pair, then time, then file order
    sorted_pairs = pairs[order]
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = sorted_pairs[1:] != sorted_pairs[:-1]
    return order[last].sort().values


def _core(users: Tensor, items: Tensor, min_user_count: int, min_item_count: int) -> Tensor:
    """Rows left when users and items with too few rows are taken out until none is."""
    rows = torch.arange(len(users))
    while len(rows):
        enough = (users[rows].bincount()[users[rows]] >= min_user_count) & (
            items[rows].bincount()[items[rows]] >= min_item_count
        )
        if bool(enough.all()):
            break
        rows = rows[enough]
    return rows
