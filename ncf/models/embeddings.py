"""The user and item tables, in one TorchRec `EmbeddingBagCollection`, and their one lookup.

Where TorchRec is not installed, and in a model that was loaded to answer, `LocalTables` has its place: a model trains
and ranks in one process with either, under the same parameter names. `UserItemEmbeddings.use_torchrec` changes over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncf.models.bags import FeatureBags, table_rows
from ncf.utils.seeding import normal_rows

Side = Literal["user", "item"]


@dataclass(frozen=True)
class Table:
    """One embedding table.

    Args:
        name: of the table, as in ``embeddings.ebc.embedding_bags.<name>.weight``.
        side: the ids that index it.
        dim: columns; FBGEMM, which runs sharded tables, needs a multiple of four.
        init_std: standard deviation of the initial values.
        random_columns: how many columns start at random; the rest start at zero. All by default.

    Raises:
        ValueError: if the standard deviation is negative or not finite.
    """

    name: str
    side: Side
    dim: int
    init_std: float
    random_columns: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.init_std < math.inf:
            raise ValueError(f"init_std = {self.init_std}: give a finite standard deviation of at least 0")


class TableFiller(Protocol):
    """Fills a rectangle of a table that has no values yet."""

    def __call__(self, out: Tensor, *, row: int, column: int) -> None:
        """Fill ``out``, ``[R, D]``, with the table's rectangle whose first row and column are given."""


class LocalTables(nn.Module):
    """Tables of one process, without TorchRec: parameters have the names of its `EmbeddingBagCollection`.

    Args:
        tables: the tables; they have no values yet.
        rows: how many of them each side has.
    """

    def __init__(self, tables: Sequence[Table], rows: Mapping[Side, int]) -> None:
        super().__init__()
        self.embedding_bags = nn.ModuleDict()
        for table in tables:
            size = rows[table.side], table.dim
            weight = torch.empty(size, dtype=torch.float32, device="meta")
            self.embedding_bags[table.name] = nn.EmbeddingBag(*size, mode="sum", _weight=weight)


_local_only: ContextVar[bool] = ContextVar("local_only", default=False)


@contextmanager
def local_tables() -> Iterator[None]:
    """Build models with `LocalTables` meanwhile, and import TorchRec for none of them."""
    token = _local_only.set(True)
    try:
        yield
    finally:
        _local_only.reset(token)


class UserItemEmbeddings(nn.Module):
    """Looks up the rows of a user and of an item in every table.

    In one process a lookup is a plain gather: one id, one row. Once TorchRec has sharded the collection, the
    ids travel as a `KeyedJaggedTensor` with bags of one. Both give the same numbers.

    Where a side has features, a bag holds an id and its features, whose rows lie behind the rows of ids in the same
    tables; a lookup gives the weighted sum.

    Args:
        num_users: rows of the user tables.
        num_items: rows of the item tables.
        tables: the tables.
        seed: of the initial values.
        device: where the tables live; ``"meta"`` holds no values, for sharding.
        features: of users, of items, or of both, by side; or their sizes, see `ncf.models.bags.FeatureBags`.
        id_dropout: probability with which, in training, the row of an id that has features counts nothing.

    Attributes:
        table_fillers: by table, the function that fills a part of it: with initial values, unless replaced.
        sparse_gradients: gradients of tables in one process are of the rows looked up alone, as
            `ncf.training.optimizers.RowSparse` reads them.

    Example::

        >>> import torch
        >>> from ncf.models.embeddings import Table, UserItemEmbeddings
        >>> tables = [Table("user_gmf", "user", 8, 0.01), Table("item_gmf", "item", 8, 0.01)]
        >>> embeddings = UserItemEmbeddings(3, 5, tables)
        >>> rows = embeddings(torch.tensor([0, 2]), torch.tensor([[1, 2, 3], [4, 4, 0]]))
        >>> rows["user_gmf"].shape, rows["item_gmf"].shape
        (torch.Size([2, 1, 8]), torch.Size([2, 3, 8]))
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        tables: Sequence[Table],
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        features: Mapping[Side, Any] | None = None,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.sparse_gradients = False
        self.num_users = num_users
        self.num_items = num_items
        self.tables = tuple(tables)
        self.id_dropout = id_dropout
        with_values = device is None or torch.device(device).type != "meta"
        sizes: dict[Side, int] = {"user": num_users, "item": num_items}
        self.features: Any = nn.ModuleDict(
            {
                side: FeatureBags(given, sizes[side], device if with_values else None)
                for side, given in (features or {}).items()
            }
        )
        self.rows = {side: table_rows(self._bags(side), size) for side, size in sizes.items()}
        rows = self.rows
        self.table_fillers: dict[str, TableFiller] = {
            table.name: partial(
                normal_rows if (bags := self._bags(table.side)) is None else bags.fill,
                std=table.init_std,
                seed=seed,
                table=table.name,
                width=table.dim if table.random_columns is None else table.random_columns,
            )
            for table in tables
        }
        # Built without values: the collection's own would come from the global generator.
        self.ebc: Any = LocalTables(tables, rows)
        if not _local_only.get():
            with suppress(ImportError):  # of TorchRec; a model of one process does without
                self.use_torchrec()
        if with_values:
            for table in self.tables:
                weight = torch.empty(rows[table.side], table.dim, dtype=torch.float32, device=device or "cpu")
                self.table_fillers[table.name](weight, row=0, column=0)
                self.ebc.embedding_bags[table.name].weight = nn.Parameter(weight)

    def _bags(self, side: Side) -> FeatureBags | None:
        bags: FeatureBags | None = dict(self.features).get(side)
        return bags

    def use_torchrec(self) -> None:
        """Move local tables into a TorchRec `EmbeddingBagCollection`, as sharding needs it; nothing is copied.

        Raises:
            ImportError: if TorchRec cannot be loaded; the message says what to install.
        """
        if not isinstance(self.ebc, LocalTables):
            return
        from ncf.utils.torchrec_import import EmbeddingBagCollection, EmbeddingBagConfig

        configs = [
            EmbeddingBagConfig(
                name=table.name,
                embedding_dim=table.dim,
                num_embeddings=self.rows[table.side],
                feature_names=[table.side],
            )
            for table in self.tables
        ]
        collection = EmbeddingBagCollection(
            tables=configs, is_weighted=bool(self.features), device=torch.device("meta")
        )
        for table in self.tables:
            collection.embedding_bags[table.name].weight = self.weight(table.name)
        self.ebc = collection

    @property
    def is_sharded(self) -> bool:
        """True if TorchRec has replaced the collection by a sharded one."""
        if isinstance(self.ebc, LocalTables):
            return False
        from ncf.utils.torchrec_import import EmbeddingBagCollection

        return not isinstance(self.ebc, EmbeddingBagCollection)

    @property
    def is_meta(self) -> bool:
        """True if the tables have no values yet, and wait to be sharded."""
        return not self.is_sharded and self.weight(self.tables[0].name).is_meta

    def weight(self, table: str) -> Tensor:
        """The whole weight of a table that is not sharded, ``[rows, dim]``: rows of ids, then of features."""
        weight: Tensor = self.ebc.embedding_bags[table].weight
        return weight

    def weights(self) -> dict[str, Tensor]:
        """The rows of all ids by table, features included; not of sharded tables."""
        return {
            table.name: self.weight(table.name)
            if (bags := self._bags(table.side)) is None
            else bags.pooled(self.weight(table.name))
            for table in self.tables
        }

    def forward(self, users: Tensor, items: Tensor, *, training: bool = False) -> dict[str, Tensor]:
        """Look the rows up.

        Args:
            users: ``[B]``, int64.
            items: ``[B]``, or ``[B, C]`` for several items of each user.
            training: drop ids at random, so that features stand in for them.

        Returns:
            The rows by table: ``[B, D]`` each; with ``[B, C]`` items, ``[B, 1, D]`` for a user table and
            ``[B, C, D]`` for an item table.
        """
        dropout = self.id_dropout if training else 0.0
        if self.is_sharded:
            rows = self.collective_lookup(users, items.reshape(-1), dropout)
            leading = {"user": (len(users), 1) if items.dim() == 2 else users.shape, "item": items.shape}
            return {t.name: rows[t.name].view(*leading[t.side], t.dim) for t in self.tables}
        ids: dict[Side, Tensor] = {"user": users[:, None] if items.dim() == 2 else users, "item": items}
        bags = {side: of(ids[side].reshape(-1), dropout) for side, of in self.features.items()}
        return {
            table.name: F.embedding(ids[table.side], self.weight(table.name), sparse=self.sparse_gradients)
            if table.side not in bags
            else self.features[table.side]
            .pool(self.weight(table.name), bags[table.side], self.sparse_gradients)
            .view(*ids[table.side].shape, table.dim)
            for table in self.tables
        }

    def collective_lookup(self, users: Tensor, items: Tensor, dropout: float = 0.0) -> dict[str, Tensor]:
        """The rows of some users and of some items from sharded tables; every rank must call it.

        Args:
            users: ``[U]``, int64, any number of them on each rank.
            items: ``[I]``, int64.
            dropout: probability with which the row of an id that has features counts nothing.

        Returns:
            ``[U, D]`` for each user table, ``[I, D]`` for each item table. One all-to-all for all tables.
        """
        from ncf.utils.torchrec_import import KeyedJaggedTensor

        # Empty bags make the shorter side as long as the other.
        lengths = torch.zeros(2, max(len(users), len(items)), dtype=torch.int32, device=items.device)
        values, weights = [], []
        for row, side, ids in ((0, "user", users), (1, "item", items)):
            lengths[row, : len(ids)] = 1
            value, weight = ids, torch.ones(len(ids), dtype=torch.float32, device=ids.device)
            if side in self.features:
                value, lengths[row, : len(ids)], weight = self.features[side](ids, dropout)
            values.append(value)
            weights.append(weight)
        features = KeyedJaggedTensor(
            keys=["user", "item"],
            values=torch.cat(values),
            lengths=lengths.view(-1),
            weights=torch.cat(weights) if self.features else None,
        )
        pooled = self.ebc(features)  # lazily awaited by the first use
        keys: list[str] = list(pooled.keys())
        rows = dict(zip(keys, torch.split(pooled.values(), pooled.length_per_key(), dim=1), strict=True))
        return {
            table.name: rows[key if (key := f"{table.side}@{table.name}") in rows else table.side][
                : len(users if table.side == "user" else items)
            ]
            for table in self.tables
        }
