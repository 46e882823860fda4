"""Ranked lists from a trained model, by raw id: `Recommender` keeps what answers need; `recommend` makes one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import compress, islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ncf.data.arrow import pa
from ncf.data.columns import from_tensor
from ncf.data.interactions import Interactions
from ncf.data.splitting import Split
from ncf.data.vocabulary import HashedVocabulary
from ncf.distributed.collectives import raise_on_all_ranks
from ncf.inference.answers import Neighbours, Recommendations
from ncf.inference.raw_ids import RawIds, column_of, pairs
from ncf.kernels.reference import largest_k
from ncf.models.base import SupportsScore, inference_scorer, unwrap_model
from ncf.utils.checks import check_choice, whole
from ncf.utils.jagged import lengths_to_offsets, select_lists

Unknown = Literal["raise", "popular", "prior", "skip"]
Lists = tuple[Tensor, Tensor]  # offsets [R + 1] and items, ascending within a row


class Recommender:
    """Answers from a trained model: everything that an answer needs is laid out once and kept between calls.

    It changes neither the model nor any global setting, may be used from several threads at once, after a fork, and
    pickled. Later training of the model does not change its answers.

    Args:
        model: anything with ``score(users, candidates)``: a trained model or a baseline.
        seen: the items each user has interacted with, not offered again: `Interactions` with the model's raw ids, in
            any numbering; or ``{user: items}``. Raw ids that are unknown to the model are passed over.
        popularity: a weight per item in the order of the model's items, ``[num_items]``, for users that the model
            does not know; by default the number of interactions in ``seen``.
        item_columns: what to show of items, such as their titles: an Arrow table, or a dict of columns, with a row per
            item in the order of the model's items.

    Raises:
        ValueError: if the sizes of the model and of ``seen`` differ, or no raw id of ``seen`` is known.

    Example::

        >>> from ncf import Interactions, ItemPop, Recommender
        >>> bought = Interactions.from_arrays(["ann", "bob", "bob", "cat"], ["tea", "tea", "milk", "milk"])
        >>> recommender = Recommender(ItemPop(bought), seen=bought)
        >>> recommender.recommend("ann", k=2).items
        [['milk']]
        >>> recommender.recommend(["eve", "ann"], unknown="popular").sources
        ['popularity', 'model']
    """

    record: dict[str, Any] | None = (
        None  # of a loaded one: what its model was trained on, and how good it was
    )
    versions: dict[str, str] | None = None  # of a loaded one: of ncf and torch, when it was saved

    def __init__(
        self,
        model: SupportsScore,
        *,
        seen: Interactions | Mapping[Any, Any] | None = None,
        popularity: Tensor | None = None,
        item_columns: Any = None,
    ) -> None:
        self.model = unwrap_model(model)
        self._scorer = inference_scorer(model)
        with raise_on_all_ranks(self._scorer.distributed):
            sides = [RawIds(self.model, seen, side) for side in ("user", "item")]
            self._users, self._items = sides
            self._seen: Lists | None = None if seen is None else self._lists(seen, "seen")
            self.popularity = self._counts() if popularity is None else popularity
            if self.popularity is not None and len(self.popularity) < self.num_items:
                raise ValueError(f"popularity has {len(self.popularity)} weights for {self.num_items} items")
            self._columns: Any = _table(item_columns, self.num_items)

    @property
    def num_users(self) -> int:
        """Number of users of the model."""
        return self._users.size

    @property
    def num_items(self) -> int:
        """Number of items that a list may hold."""
        return self._items.size

    @property
    def item_columns(self) -> Any:
        """An Arrow table with a row per item, to show; that of a folder is read at first use."""
        columns = self._columns
        if callable(columns):
            columns = self._columns = _table(columns(), self.num_items)
        return columns

    def some_user(self) -> Any:
        """Return a raw user id: the first, or any where they are hashed."""
        if isinstance(self._users.vocabulary, HashedVocabulary):
            return "0"
        return self._users.decode(torch.zeros(1, dtype=torch.int64, device="cpu"))[0]

    @property
    def has_seen(self) -> bool:
        """The recommender was made with what its users have interacted with."""
        return self._seen is not None

    def __repr__(self) -> str:
        seen = "" if self._seen is None else f", {len(self._seen[1])} seen items"
        return (
            f"Recommender({type(self.model).__name__}, {self.num_users} users, {self.num_items} items{seen})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in (vars(self) | {"_columns": self.item_columns}).items()
            if name not in ("_scorer", "_vectors", "_fold_in", "_prior", "_every_item")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._scorer = inference_scorer(self.model)

    def recommend(
        self,
        users: Any = None,
        k: int = 10,
        *,
        history: Sequence[Any] | None = None,
        items: Any = None,
        exclude: Any = None,
        exclude_seen: bool = True,
        unknown: Unknown = "raise",
    ) -> Recommendations:
        """Rank the items for some users and keep the top of each list.

        A list has exactly ``min(k, what may be offered)`` items. Of items with equal scores the one with the lower
        number comes first.

        Args:
            users: raw user ids, ``[U]``, one id, or a `Vocabulary`; all by default.
            k: length of a list.
            history: in place of ``users``, raw ids of items that someone new has interacted with, or a list of such
                lists: the rows of such users are folded in, see `ncf.fold_in`. Unknown items are passed over.
            items: raw ids of the only items that may be offered, such as those in stock; all by default.
            exclude: items that are not offered: raw ids, for everybody; or by user, ``{user: items}`` or
                `Interactions`.
            exclude_seen: leave out what the user has interacted with, by the argument ``seen`` of the constructor or
                by the history.
            unknown: what a user whom the model does not know gets: ``"raise"`` a ValueError, ``"popular"`` the most
                popular items, ``"prior"`` the list of a history without an item, ``"skip"`` an empty list.

        Returns:
            `Recommendations`, in the order of ``users``.

        Raises:
            ValueError: if a user is unknown, an argument is out of range, or a score is NaN.
            TypeError: if ``exclude`` is a `Split`.
        """
        with raise_on_all_ranks(self._scorer.distributed):
            k = whole("k", k)
            if isinstance(exclude, Split):
                raise TypeError("exclude is a Split: give one of its sets, such as split.train")
            check_choice("unknown", unknown, ("raise", "popular", "prior", "skip"))
            if history is not None:
                return self._from_history(users, k, history, items, exclude, exclude_seen)
            raw, rows = self._numbers(users, unknown)
            offered = self._offered(items)
            by_user = exclude if isinstance(exclude, (Interactions, Mapping)) else None
            if exclude is not None and by_user is None:
                offered = offered[~torch.isin(offered, self._items.known(exclude, "exclude"))]
            is_known = [row >= 0 for row in rows.tolist()]
            every = all(is_known)
            asked = rows if every else rows[rows >= 0]
            parts = [] if self._seen is None or not exclude_seen else [select_lists(*self._seen, asked)]
            if by_user is not None:
                parts.append(self._for_rows(by_user, raw, asked, is_known))
            left_out = _union(parts, self.num_items) if parts else None
            if unknown == "popular" and not every and self.popularity is None:
                raise ValueError(
                    'unknown = "popular": nothing says what is popular, give interactions as seen (or exclude)'
                )
        width = min(k, len(offered))
        scores, selected = self._scorer.top_k(asked, width, offered, left_out)
        other = {"popular": "popularity", "prior": "prior"}.get(unknown, "skipped")
        sources = ["model" if its_row else other for its_row in is_known]
        if not every:
            known = rows >= 0
            scores, selected = _placed(scores, selected, known)
            if unknown in ("popular", "prior"):
                weights = self.popularity if unknown == "popular" else self._prior
                self._fill_unknown(weights, scores, selected, offered, raw, known, by_user)
        return Recommendations(raw, self._decode(selected), scores, sources)

    def _from_history(
        self, users: Any, k: int, history: Sequence[Any], items: Any, exclude: Any, exclude_seen: bool
    ) -> Recommendations:
        if users is not None or isinstance(exclude, (Interactions, Mapping)):
            raise ValueError(
                "history is of someone unknown: give no users with it, and items to exclude as a list"
            )
        offered = self._offered(items)
        if exclude is not None:
            offered = offered[~torch.isin(offered, self._items.known(exclude, "exclude"))]
        one = not len(history) or isinstance(history[0], (str, int)) or not hasattr(history[0], "__len__")
        histories: list[Any] = [history] if one else list(history)
        found = [self._items.known(listed, f"history[{n}]").unique() for n, listed in enumerate(histories)]
        lengths = torch.tensor([len(numbers) for numbers in found], dtype=torch.int64, device="cpu")
        left_out = (lengths_to_offsets(lengths), torch.cat(found)) if exclude_seen else None
        folded = inference_scorer(self._fold_in(found))
        rows = torch.arange(len(histories), dtype=torch.int64, device="cpu")
        scores, selected = folded.top_k(rows, min(k, len(offered)), offered, left_out)
        return Recommendations([None] * len(rows), self._decode(selected), scores, ["history"] * len(rows))

    @cached_property
    def _fold_in(self) -> Any:
        from ncf.inference.fold_in import FoldIn, fold_in
        from ncf.models.base import EmbeddingModel

        return FoldIn(self.model) if isinstance(self.model, EmbeddingModel) else partial(fold_in, self.model)

    def popular(self, k: int = 10) -> list[Any]:
        """Return the raw ids of the most popular items, at most ``k``, best first.

        Raises:
            ValueError: if nothing says what is popular.
        """
        if self.popularity is None:
            raise ValueError("nothing says what is popular: give the interactions as seen")
        order = self.popularity[: self.num_items].sort(descending=True, stable=True).indices
        decoded: list[Any] = self._items.decode(order[: whole("k", k)])
        return decoded

    def score(self, users: Any, items: Any) -> Tensor:
        """Score items for users.

        Args:
            users: raw user ids, ``[U]``, or one id.
            items: raw item ids, ``[C]``, or one id.

        Returns:
            Scores, ``[U, C]``, on the CPU.

        Raises:
            ValueError: if an id is unknown.
        """
        with raise_on_all_ranks(self._scorer.distributed):
            pair = self._users.find_all(users, "users"), self._items.find_all(items, "items")
        device = self._scorer.device or torch.device("cpu")
        scores: Tensor = self._scorer.score(*(ids.to(device) for ids in pair))
        return scores.cpu()

    def history(self, user: Any) -> list[Any]:
        """Return the raw ids of the items that a user has interacted with, by ``seen``.

        Raises:
            ValueError: if the user is unknown, or there is no ``seen``.
        """
        return self._items.decode(self._seen_by(user))

    def similar(self, items: Any, k: int = 10) -> Neighbours:
        """Find the items that are most alike in the model's eyes.

        Of a model with scoring tables: the cosine of the item vectors that go into the score. Of a model with weights
        between items, such as `EASE`: these.

        Args:
            items: raw item ids, ``[n]``, or one id.
            k: how many to find.

        Returns:
            `Neighbours`; an item is not its own neighbour.

        Raises:
            ValueError: if an item is unknown.
            TypeError: if the model has no item vectors.
        """
        rows, k = self._items.find_all(items, "items"), whole("k", k)
        own = rows[:, None] == self._every_item
        scores, selected = largest_k(self._relations(rows), self._every_item, min(k, self.num_items), own)
        return Neighbours(self._decode(selected), scores)

    def explain(self, user: Any, item: Any, k: int = 5) -> Neighbours:
        """Find the interactions of a user that raise an item's score most: with similar items, see `similar`.

        For a model with weights between items, such as `EASE`, the scores add up to the score of the item.

        Args:
            user: raw user id.
            item: raw item id.
            k: how many interactions to name.

        Returns:
            `Neighbours` with one list.

        Raises:
            ValueError: if an id is unknown, or there is no ``seen``.
            TypeError: if the model has no item vectors.
        """
        seen, (row,), k = self._seen_by(user), self._items.find_all(item, "item"), whole("k", k)
        seen = seen[seen != row]
        if not len(seen):
            return Neighbours([[]], torch.empty(1, 0, dtype=torch.float32, device="cpu"))
        toward = self._relations(row[None], toward=True)[:, seen]
        scores, selected = largest_k(toward, seen, min(k, len(seen)))
        return Neighbours(self._decode(selected), scores)

    def titles(self, items: Sequence[Any], column: str = "title") -> list[Any]:
        """Look up a column of ``item_columns`` for raw item ids.

        Raises:
            ValueError: if an item is unknown, or there is no such column.
        """
        if self.item_columns is None or column not in self.item_columns.column_names:
            raise ValueError(f"there is no column {column!r}: give item_columns with it")
        rows = self._items.find_all(items, "items")
        taken: list[Any] = self.item_columns[column].take(from_tensor(rows)).to_pylist()
        return taken

    def save(self, path: str | PathLike[str], **options: Any) -> None:
        """Write the model with all that answers need to a folder, which `load` reads.

        Args:
            path: the folder.
            options: further arguments of `ncf.models.saving.save`, such as ``rows="int8"`` and ``record=``.

        Raises:
            OSError: if a file cannot be written.
        """
        from ncf.models.saving import save

        model: Any = self.model
        seen, popularity = self._seen, self.popularity
        if seen is not None:  # rows to spare have none
            more = seen[0][-1:].expand(model.num_users - self.num_users)
            seen = torch.cat([seen[0], more]), seen[1]
        if popularity is not None:
            popularity = torch.nn.functional.pad(popularity, (0, model.num_items - len(popularity)))
        save(model, path, seen=seen, popularity=popularity, item_columns=self.item_columns, **options)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: torch.device | str = "cpu") -> Recommender:
        """Read what `save`, or a model's own ``save``, wrote.

        Args:
            path: the folder.
            device: where to put the model; on a CPU its tables stay in the file, which processes share.

        Raises:
            FileNotFoundError: if the folder holds no model.
            ValueError: if a file is damaged.
        """
        from ncf.models.loading import load_saved

        saved = load_saved(path, device=device, mmap=torch.device(device).type == "cpu")
        loaded = cls(saved.model, popularity=saved.popularity)
        loaded.record, loaded.versions = saved.record, saved.versions
        loaded._seen, loaded._columns = saved.seen, saved.item_columns
        return loaded

    def share(self, file: str | PathLike[str]) -> None:
        """Map the rows that are laid out for scoring from a file, so that processes share one copy of them.

        Call it before the first answer. The first process writes the file. Only a model that ranks on a CPU, by the
        kernel in C, has such rows.

        Args:
            file: the same for all processes of a machine that have loaded the same folder, and where nobody else can
                write.

        Raises:
            OSError: if the file cannot be written.

        Example::

            >>> import tempfile
            >>> from ncf import GMF, Recommender
            >>> recommender = Recommender(GMF(5, 20))
            >>> before = recommender.recommend(3).items
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     recommender.share(f"{folder}/rows")
            ...     recommender.recommend(3).items == before
            True
        """
        self._scorer.share(Path(file))

    def _numbers(self, users: Any, unknown: Unknown) -> tuple[list[Any], Tensor]:
        """Raw ids of users, and their numbers, -1 for an unknown one."""
        if users is None:
            rows = torch.arange(self.num_users, dtype=torch.int64, device="cpu")
            return self._users.decode(rows), rows
        column = column_of(users, "users")
        rows = self._users.find_column(column, "users")
        if unknown == "raise":
            self._users.check(
                rows, column, "users", '; unknown="popular" or "skip" gives such users other lists'
            )
        return list(column) if isinstance(column, list) else column.to_pylist(), rows

    @cached_property
    def _every_item(self) -> Tensor:
        return torch.arange(self.num_items, dtype=torch.int64, device="cpu")

    def _offered(self, items: Any) -> Tensor:
        if items is None:
            return self._every_item
        offered: Tensor = self._items.known(items, "items").unique()
        return offered

    def _lists(self, by_user: Interactions | Mapping[Any, Any], name: str) -> Lists:
        """The items of every user in the model's numbering, unknown users and items left out."""
        if isinstance(by_user, Mapping):
            users, items = pairs(by_user, name)
            return self._by_row(self._users.find(users, name), self._items.find(items, name), self.num_users)
        if not isinstance(by_user, Interactions):
            raise TypeError(f"{name} must be Interactions or {{user: items}}, got {type(by_user).__name__}")
        for side, ids in ((self._users, by_user.user_ids), (self._items, by_user.item_ids)):
            side.check_size(ids, by_user, name)
        users = self._users.renumber(by_user.users.cpu(), by_user.user_ids, name)
        items = self._items.renumber(by_user.items.cpu(), by_user.item_ids, name)
        if not bool(((users >= 0) & (items >= 0)).any()):
            raise ValueError(f"no raw id of {name} is known to the model: give interactions of the same data")
        return self._by_row(users, items, self.num_users)

    def _by_row(self, rows: Tensor, items: Tensor, num_rows: int) -> Lists:
        known = (rows >= 0) & (items >= 0)
        keys = (rows * self.num_items + items)[known].unique()
        return lengths_to_offsets(
            torch.bincount(keys // self.num_items, minlength=num_rows)
        ), keys % self.num_items

    def _for_rows(
        self, by_user: Interactions | Mapping[Any, Any], raw: list[Any], asked: Tensor, is_known: list[bool]
    ) -> Lists:
        if isinstance(by_user, Mapping):
            by_user = {user: by_user[user] for user in compress(raw, is_known) if user in by_user}
        return select_lists(*self._lists(by_user, "exclude"), asked)

    def _counts(self) -> Tensor | None:
        if self._seen is None:
            return None
        counts: Tensor = torch.bincount(self._seen[1], minlength=self.num_items)
        return counts.to(torch.float32)

    def _seen_by(self, user: Any) -> Tensor:
        if self._seen is None:
            raise ValueError("nothing says what the user has interacted with: give the interactions as seen")
        (row,) = self._users.find_all(user, "user").tolist()
        offsets, items = self._seen
        return items[int(offsets[row]) : int(offsets[row + 1])]

    def _fill_unknown(
        self,
        of_items: Tensor | None,
        scores: Tensor,
        selected: Tensor,
        offered: Tensor,
        raw: list[Any],
        known: Tensor,
        by_user: Any,
    ) -> None:
        assert of_items is not None
        weights = of_items[offered]
        order = weights.sort(descending=True, stable=True).indices
        of_user = by_user if isinstance(by_user, Mapping) else {}
        for row in (~known).nonzero()[:, 0].tolist():
            hidden = self._items.known(of_user[raw[row]], "exclude") if raw[row] in of_user else order[:0]
            best = order[: scores.shape[1] + len(hidden)]
            best = best[~torch.isin(offered[best], hidden)][: scores.shape[1]]
            scores[row, : len(best)], selected[row, : len(best)] = (
                weights[best].to(scores.dtype),
                offered[best],
            )

    def _decode(self, selected: Tensor) -> list[list[Any]]:
        lists, width = selected.reshape(-1), selected.shape[1]
        lengths = [width] * len(selected)
        if min(selected[:, -1:].reshape(-1).tolist(), default=0) < 0:  # a list is shorter than the others
            lists, lengths = lists[lists >= 0], (selected >= 0).sum(1).tolist()
        raw = iter(self._items.decode(lists))
        return [list(islice(raw, length)) for length in lengths]

    @cached_property
    def _prior(self) -> Tensor:
        """The score of each item for a user without a history, ``[num_items]``."""
        scorer = inference_scorer(self._fold_in([[]]))
        scores: Tensor = scorer.score(torch.zeros(1, dtype=torch.int64, device="cpu"), self._every_item)
        return scores[0].cpu()

    @cached_property
    def _vectors(self) -> Tensor:
        """Item vectors of length one, ``[num_items, D]``, float32."""
        tables: Any = getattr(self.model, "scoring_tables", None)
        if tables is not None and not getattr(self._scorer, "distributed", False):
            laid_out = tables().detach()
            parts = [t for t in (laid_out.item_hidden, laid_out.item_gmf) if t is not None]
        elif hasattr(self.model, "item_factors"):
            parts = [self.model.item_factors]
        else:
            parts = []
        if not parts:  # such as an MLP without a hidden layer, which has a number per item
            raise TypeError(f"{type(self.model).__name__} has no item vectors to compare")
        parts = [torch.nn.functional.normalize(part.to("cpu", torch.float32), dim=1) for part in parts]
        return torch.nn.functional.normalize(torch.cat(parts, dim=1)[: self.num_items], dim=1)

    def _relations(self, rows: Tensor, toward: bool = False) -> Tensor:
        """Return the relation of some items to all items, ``[n, num_items]``, or of all items to them."""
        model: Any = self.model
        if hasattr(model, "weights_of"):
            weights: Tensor = model.weights_of(rows.to(model.device), toward=toward)
            return weights[:, : self.num_items].cpu()
        cosines: Tensor = self._vectors[rows] @ self._vectors.T
        return cosines


def recommend(
    model: SupportsScore,
    users: Any,
    k: int = 10,
    *,
    exclude: Any = None,
    items: Any = None,
    unknown: Unknown = "raise",
) -> Recommendations:
    """Rank the whole catalogue for some users and keep the top of it: one call of a `Recommender` made for it.

    Args:
        model: anything with ``score(users, candidates)``: a trained model or a baseline.
        users: raw user ids, ``[U]``, or one id, as in the data that the model was trained on (0-based numbers where
            that data had no vocabulary).
        k: length of the list.
        exclude: interactions whose items are not offered again to the same user, usually the training data; or
            ``{user: items}``; or raw item ids that nobody is offered.
        items: raw ids of the only items that may be offered; all by default.
        unknown: what a user whom the model does not know gets; see `Recommender.recommend`.

    Returns:
        `Recommendations`: raw item ids, scores and sources.

    Raises:
        ValueError: if a user is unknown, an argument is out of range, the interactions to exclude have another number
            of users or items than the model where either has no raw ids, or a score is NaN.

    Example::

        >>> from ncf import Interactions, ItemPop, recommend
        >>> bought = Interactions.from_arrays(["ann", "bob", "bob", "cat"], ["tea", "tea", "milk", "milk"])
        >>> recommend(ItemPop(bought), ["ann", "bob"], k=2, exclude=bought).items
        [['milk'], []]
    """
    seen = exclude if isinstance(exclude, Interactions) else None
    listed = None if seen is not None else exclude
    return Recommender(model, seen=seen).recommend(users, k, exclude=listed, items=items, unknown=unknown)


def _union(parts: list[Lists], num_items: int) -> Lists:
    """The lists of several sources as one list per row, ascending, each item once."""
    if len(parts) == 1:
        return parts[0]
    num_rows = len(parts[0][0]) - 1
    keys = [torch.repeat_interleave(offsets.diff()) * num_items + items for offsets, items in parts]
    every = torch.cat(keys).unique()
    return lengths_to_offsets(torch.bincount(every // num_items, minlength=num_rows)), every % num_items


def _placed(scores: Tensor, selected: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of known users among all rows; the others are empty."""
    of_all = torch.full((len(known), scores.shape[1]), -torch.inf, dtype=scores.dtype, device="cpu")
    items = torch.full(of_all.shape, -1, dtype=torch.int64, device="cpu")
    of_all[known], items[known] = scores, selected
    return of_all, items


def _table(columns: Any, num_items: int) -> Any:
    if columns is None:
        return None
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    if table.num_rows != num_items:
        raise ValueError(f"item_columns has {table.num_rows} rows for {num_items} items")
    return table
