"""Side information of users or items: categories, lists of categories and numbers, out of a table's columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ncf.data.arrow import pa, pc
from ncf.data.columns import arrow_column, from_tensor, id_column, is_text_type, places_among, to_tensor
from ncf.data.readers import arrow_table
from ncf.data.vocabulary import Vocabulary
from ncf.utils.checks import check_choice, whole
from ncf.utils.jagged import check_lists, lengths_to_offsets, select_lists

Kind = Literal["categorical", "numeric"]
Name = tuple[str, Any]  # a column and one of its values; None for the column of numbers itself


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """Features of users or of items, as numbered lists: each feature has a row of its own in a model's tables.

    A category is a feature. So is a column of numbers, whose weight is the number in standard deviations from the mean.

    Args:
        offsets: entity n has ``rows[offsets[n] : offsets[n + 1]]``, ``[N + 1]``, int64.
        rows: numbers of features, ``[M]``, int64.
        weights: of each of them in its entity's sum, ``[M]``, float32.
        names: of the features, ``[F]``: the column, and the category or ``None``.
        scales: of each column of numbers, the mean and the standard deviation that were used.
        ids: raw ids of the entities, if they have any.
        unknown: by column, how many values were left out because ``like`` does not have them.

    Raises:
        ValueError: if the tensors do not fit together.

    Example::

        >>> from ncf import Features
        >>> films = {"film": ["Alien", "Brazil"], "genres": [["horror", "space"], ["satire"]], "hours": [1.9, 2.2]}
        >>> features = Features.from_table(films, "film")
        >>> features
        Features(2 entities, 4 features in genres, hours)
        >>> features.of("Alien")
        {('genres', 'horror'): 1.0, ('genres', 'space'): 1.0, ('hours', None): -1.0}
    """

    offsets: Tensor
    rows: Tensor
    weights: Tensor
    names: tuple[Name, ...]
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ids: Vocabulary | None = None
    unknown: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_lists("features", self.offsets, self.rows, len(self), len(self.names))
        if self.weights.shape != self.rows.shape or not bool(torch.isfinite(self.weights).all()):
            raise ValueError(f"weights {tuple(self.weights.shape)}: give a finite one for each of rows")
        if self.ids is not None and len(self.ids) != len(self):
            raise ValueError(f"ids has {len(self.ids)} raw ids for {len(self)} entities")

    @classmethod
    def from_table(
        cls,
        table: Any,
        id_column: str,
        *,
        ids: Vocabulary | int | None = None,
        columns: Sequence[str] | Mapping[str, Kind] | None = None,
        like: Features | None = None,
        unknown: Literal["skip", "add", "raise"] = "skip",
    ) -> Features:
        """Read features out of a table with a row for each user, or item.

        Strings, truth values and whole numbers are categories, lists of them several categories, and floating-point
        numbers are numbers. A missing value is no feature. A category twice in a list counts once.

        Args:
            table: a pandas, polars or pyarrow table, or a dict of columns.
            id_column: name of the column of raw ids.
            ids: the model's raw ids, such as ``split.train.item_ids``; or how many ids there are, where ids are plain
                numbers. Rows of others are left out, and an id without a row has no feature. By default the ids of the
                table, ascending.
            columns: names of the columns to use, by default all others; or their kind by name, for instance
                ``{"year": "numeric"}``.
            like: features that a model was trained with: their categories keep their numbers, and numbers are scaled
                alike.
            unknown: ``"skip"`` and count a category that ``like`` does not have, ``"add"`` a new feature for it, or
                ``"raise"`` an error.

        Raises:
            ValueError: if a column is missing or of another type, an id occurs twice, a number is infinite, or there
                is no feature at all.
        """
        read = table if isinstance(table, pa.Table) else arrow_table(table)
        kinds = _kinds(read, id_column, columns, like)
        chosen, rows = _rows(read, id_column, ids)
        builder, entities = _Builder(like, unknown), (rows >= 0).nonzero()[:, 0]
        for name, kind in kinds.items():
            builder.add(name, _column(read, name).take(from_tensor(rows[entities])), entities, kind)
        return builder.finish(len(rows), chosen if isinstance(chosen, Vocabulary) else None)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        columns = ", ".join(dict.fromkeys(column for column, _ in self.names))
        return f"Features({len(self)} entities, {len(self.names)} features in {columns})"

    @property
    def missing(self) -> int:
        """The number of entities without a feature."""
        return int((self.offsets.diff() == 0).sum())

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the features of all entities: equal for equal features in any process."""
        digest = hashlib.blake2b(self.description(), digest_size=16)
        for tensor in (self.offsets, self.rows, self.weights):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def of(self, entity: Any) -> dict[Name, float]:
        """Return the features of an entity, given by its raw id or its number, and their weights."""
        number = int(entity) if self.ids is None else int(self.ids.encode([entity], "entity"))
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        pairs = zip(self.rows[part].tolist(), self.weights[part].tolist(), strict=True)
        return {self.names[row]: weight for row, weight in pairs}

    def take(self, entities: Tensor, ids: Vocabulary | None = None) -> Features:
        """Return the features of some entities, numbered in the given order.

        Args:
            entities: ``[n]``, int64; ``-1`` for one without a feature.
            ids: their raw ids.
        """
        offsets = torch.cat([self.offsets, self.offsets[-1:]])  # a last and empty list for -1
        wanted = entities.where(entities >= 0, len(self))
        taken, rows = select_lists(offsets, self.rows, wanted)
        weights = select_lists(offsets, self.weights, wanted)[1]
        return Features(
            offsets=taken, rows=rows, weights=weights, names=self.names, scales=self.scales, ids=ids
        )

    def description(self) -> bytes:
        """Names and scales as JSON."""
        return json.dumps([self.names, dict(self.scales)]).encode()

    @classmethod
    def described(cls, description: bytes, **tensors: Any) -> Features:
        """Make features of what `description` returned, and of the tensors."""
        names, scales = json.loads(description)
        scaled = {name: (float(mean), float(std)) for name, (mean, std) in scales.items()}
        return cls(names=tuple((column, value) for column, value in names), scales=scaled, **tensors)


class _Builder:
    """Collects the entries of one column after the other."""

    def __init__(self, like: Features | None, unknown: str) -> None:
        check_choice("unknown", unknown, ("skip", "add", "raise"))
        self.like, self.policy = like, unknown
        self.names: list[Name] = [] if like is None else list(like.names)
        self.scales = {} if like is None else dict(like.scales)
        self.unknown: dict[str, int] = {}
        self.entries: list[tuple[Tensor, Tensor, Tensor]] = []  # entities, rows, weights

    def add(self, name: str, column: Any, entities: Tensor, kind: Kind) -> None:
        """Add a column with one row for each entity."""
        if _is_list(column.type):
            entities, column = entities[to_tensor(pc.list_parent_indices(column))], pc.list_flatten(column)
        there = pc.invert(pc.is_null(column, nan_is_null=True))
        entities, values = entities[to_tensor(pc.indices_nonzero(there))], column.filter(there)
        (self._add_numbers if kind == "numeric" else self._add_categories)(name, entities, values)

    def _add_numbers(self, name: str, entities: Tensor, values: Any) -> None:
        numbers = torch.tensor(values.cast(pa.float64()).to_pylist(), dtype=torch.float64, device="cpu")
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"{name} holds an infinite number: leave it missing")
        if (name, None) not in self.names:
            self.names.append((name, None))
            mean = float(numbers.mean()) if len(numbers) else 0.0
            deviation = float(numbers.std(correction=0)) if len(numbers) else 0.0
            self.scales[name] = mean, deviation or 1.0
        mean, deviation = self.scales[name]
        row = torch.full_like(entities, self.names.index((name, None)))
        self.entries.append((entities, row, ((numbers - mean) / deviation).to(torch.float32)))

    def _add_categories(self, name: str, entities: Tensor, values: Any) -> None:
        if pa.types.is_integer(values.type):
            values = values.cast(pa.int64())
        known = {value: row for row, (column, value) in enumerate(self.names) if column == name}
        if known and len(values) and type(next(iter(known))) is not type(values[0].as_py()):
            raise ValueError(
                f"{name} holds {values.type}, the features given as like hold {next(iter(known))!r}: convert it"
            )
        for value in sorted(set(pc.unique(values).to_pylist()) - set(known)):
            if self.like is None or self.policy == "add":
                known[value] = len(self.names)
                self.names.append((name, value))
            elif self.policy == "raise":
                raise ValueError(
                    f"{name} holds {value!r}, which the features given as like do not have: "
                    "choose unknown='skip' or unknown='add'"
                )
        present = pa.array(list(known), values.type) if known else values.slice(0, 0)
        found = places_among(present, values)
        if skipped := int((found < 0).sum()):
            self.unknown[name] = skipped
        rows = torch.tensor([*known.values(), -1], dtype=torch.int64, device="cpu")[found]
        pairs = (entities * len(self.names) + rows)[found >= 0].unique()
        ones = torch.ones(len(pairs), dtype=torch.float32, device="cpu")
        self.entries.append((pairs // max(len(self.names), 1), pairs % max(len(self.names), 1), ones))

    def finish(self, size: int, ids: Vocabulary | None) -> Features:
        """The features of that many entities."""
        if not self.names:
            raise ValueError("the table has no feature: every value is missing")
        entities, rows, weights = (torch.cat(parts) for parts in zip(*self.entries, strict=True))
        order = entities.argsort(stable=True)
        return Features(
            offsets=lengths_to_offsets(entities.bincount(minlength=size)),
            rows=rows[order],
            weights=weights[order],
            names=tuple(self.names),
            scales=self.scales,
            ids=ids,
            unknown=self.unknown,
        )


def _kinds(table: Any, id_column: str, columns: Any, like: Features | None) -> dict[str, Kind]:
    """The columns to use, and the kind of each."""
    if isinstance(columns, str):
        raise ValueError(f"columns = {columns!r}: give a list of names, [{columns!r}]")
    known = None if like is None else list(dict.fromkeys(column for column, _ in like.names))
    others = [name for name in table.column_names if name != id_column] if known is None else known
    wanted = others if columns is None else list(columns)
    for name in (id_column, *wanted):
        if table.column_names.count(name) != 1:
            fault = "occurs more than once" if name in table.column_names else "is missing"
            there = ", ".join(map(repr, table.column_names))
            raise ValueError(f"column {name!r} {fault}: the table has {there}")
    if not wanted:
        raise ValueError(f"there is no column beside {id_column!r}: name columns that hold features")
    kinds: dict[str, Kind] = {}
    for name in wanted:
        given = columns[name] if isinstance(columns, Mapping) else None
        if known is not None and like is not None:
            if name not in known:
                raise ValueError(f"column {name!r} is not one of like's: {', '.join(map(repr, known))}")
            given = "numeric" if name in like.scales else "categorical"
        kinds[name] = _kind(name, arrow_column(table[name].slice(0, 0), name).type, given)
    return kinds


def _column(table: Any, name: str) -> Any:
    """A column whose strings, in lists as well, are large_string."""
    column = arrow_column(table[name], name)
    inner = column.type.value_type if _is_list(column.type) else column.type
    if not is_text_type(inner):
        return column
    text = pa.large_string()
    return column.cast(pa.large_list(text) if _is_list(column.type) else text)


def _is_list(of: Any) -> bool:
    return bool(pa.types.is_list(of) or pa.types.is_large_list(of))


def _kind(name: str, of: Any, given: Any) -> Kind:
    """The kind of a column of an Arrow type, as given or by its type."""
    if given not in (None, "categorical", "numeric"):
        raise ValueError(f"columns[{name!r}] = {given!r}: choose 'categorical' or 'numeric'")
    is_list = _is_list(of)
    inner = of.value_type if is_list else of
    number = pa.types.is_floating(inner)
    category = pa.types.is_integer(inner) or pa.types.is_boolean(inner) or pa.types.is_null(inner)
    category = category or is_text_type(inner)
    kind: Kind = given or ("numeric" if number else "categorical")
    numeric = (number or pa.types.is_integer(inner) or pa.types.is_null(inner)) and not is_list
    fits = numeric if kind == "numeric" else category
    if not fits:
        raise ValueError(
            f"column {name!r} is of type {of}, which is not {kind}: categories are strings, whole numbers, truth "
            "values or lists of them, numbers are one a row; convert it, or name other columns"
        )
    return kind


def _rows(table: Any, name: str, ids: Vocabulary | int | None) -> tuple[Vocabulary | int, Tensor]:
    """The entities, and the table's row of each, ``-1`` for one without."""
    column = id_column(table[name], name)
    try:
        own = Vocabulary(column)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}; give a table with one row for each") from error
    if ids is None:
        order = to_tensor(pc.sort_indices(own.values))
        return own.restrict(order), order
    if isinstance(ids, Vocabulary):
        return ids, own.find(ids.values, "ids")
    count = whole("ids", ids)
    plain = from_tensor(torch.arange(count, dtype=torch.int64, device="cpu"))
    return count, own.find(plain, "ids")
