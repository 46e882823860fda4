"""More users and items for a trained model, or fewer: rows of known ids are kept, new rows start as in a new model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ncf.data.columns import from_tensor, places_among
from ncf.data.features import Features
from ncf.data.interactions import Interactions
from ncf.data.vocabulary import HashedVocabulary, Vocabulary
from ncf.models.base import EmbeddingModel
from ncf.models.embeddings import Side, TableFiller
from ncf.models.saving import table_weight
from ncf.utils.checks import check_choice
from ncf.utils.seeding import stream


@dataclass(frozen=True, eq=False, kw_only=True)
class Grown:
    """A model that `extend` made, and interactions numbered for it.

    Args:
        model: the new model; it shares no memory with the old one.
        interactions: those given to `extend`, with the model's numbers and vocabularies.
        old_users: the number that each user had in the old model, ``[num_users]``, int64; ``-1`` for a new one.
        old_items: likewise, ``[num_items]``.

    Example::

        >>> import torch
        >>> from ncf import GMF, Interactions, extend
        >>> week = Interactions.from_arrays([0, 3], [1, 4])
        >>> grown = extend(GMF(num_users=2, num_items=5), Interactions(week.users * 3, week.items, None, 4, 5))
        >>> grown.model.num_users, grown.old_users
        (4, tensor([ 0,  1, -1, -1]))
    """

    model: EmbeddingModel
    interactions: Interactions
    old_users: Tensor
    old_items: Tensor

    def carry_state(
        self, before: EmbeddingModel, optimizer: torch.optim.Optimizer, onto: torch.optim.Optimizer
    ) -> None:
        """Give an optimizer of the new model the state of one of the old model; a new row's state is zero.

        Args:
            before: the old model.
            optimizer: its optimizer, for instance ``Trainer.optimizer``.
            onto: the new model's, of the same kind.
        """
        sides: dict[str, Side] = {table.name: table.side for table in before.embeddings.tables}
        after = dict(self.model.named_parameters())
        for name, parameter in before.named_parameters():
            state = optimizer.state.get(parameter)
            if not state:
                continue
            side = sides.get(name.split(".")[-2]) if name.startswith("embeddings.") else None
            rows = None if side is None else _table_rows(self._old(side), before, self.model, side)
            onto.state[after[name]] = {
                key: _carried(value, rows, len(parameter)) for key, value in state.items()
            }

    def renumbered(self, interactions: Interactions) -> Interactions:
        """Interactions numbered for the old model, such as those it was trained on, with the new model's numbers.

        Args:
            interactions: with the old model's numbers; users and items that were dropped are left out.

        Raises:
            ValueError: if no interaction is left, or the interactions number other raw ids than the old model.
        """
        columns = {}
        sides: tuple[Side, ...] = "user", "item"
        for side in sides:
            self._check_numbers(getattr(interactions, f"{side}_ids"), side)
            old = self._old(side)
            size = max(int(old.max()) + 1, getattr(interactions, f"num_{side}s"))
            new = torch.full((size,), -1, dtype=torch.int64, device="cpu")
            kept = old >= 0
            new[old[kept]] = torch.arange(len(old), dtype=torch.int64, device="cpu")[kept]
            columns[side] = new[getattr(interactions, f"{side}s")]
        rows = ((columns["user"] >= 0) & (columns["item"] >= 0)).nonzero()[:, 0]
        times = None if interactions.timestamps is None else interactions.timestamps[rows]
        return replace(
            self.interactions, users=columns["user"][rows], items=columns["item"][rows], timestamps=times
        )

    def with_replay(self, interactions: Interactions, share: float = 1.0, *, seed: int = 0) -> Interactions:
        """The new interactions, and a random share of old ones, to train on; a pair counts once.

        With a share below one, an old positive that is not replayed may be drawn as a negative.

        Args:
            interactions: the old model's training interactions, with its numbers.
            share: of them, between 0 and 1.
            seed: of the choice.

        Returns:
            Interactions with the new model's numbers; timestamps are kept where both have them.

        Raises:
            ValueError: if the share is not between 0 and 1; or see `renumbered`.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share = {share}: give a number between 0 and 1")
        new, old = self.interactions, self.renumbered(interactions)
        chosen = (
            torch.rand(len(old), generator=stream(seed, "replay"), dtype=torch.float64, device="cpu") < share
        )
        keys = [part.users * new.num_items + part.items for part in (new, old)]
        chosen &= ~torch.isin(keys[1], keys[0])
        times = None
        if new.timestamps is not None and old.timestamps is not None:
            times = torch.cat([old.timestamps[chosen], new.timestamps])
        users = torch.cat([old.users[chosen], new.users])
        return replace(new, users=users, items=torch.cat([old.items[chosen], new.items]), timestamps=times)

    def histories(self, side: Side = "user") -> list[Tensor]:
        """The items of each new user, or the users of each new item, with the new model's numbers.

        `ncf.fold_in` finds rows from them: ``grown.start(fold_in(grown.model, grown.histories()).rows)``.

        Args:
            side: ``"user"`` or ``"item"``, of the new ids; in the order of their numbers.
        """
        own, others = self.interactions.users, self.interactions.items
        if side == "item":
            own, others = others, own
        is_new = self._old(side) < 0
        number, rows = is_new.cumsum(0) - 1, is_new[own].nonzero()[:, 0]
        rows = rows[own[rows].argsort(stable=True)]
        counts = number[own[rows]].bincount(minlength=int(is_new.sum()))
        return list(others[rows].split(counts.tolist()))

    @torch.no_grad()
    def start(self, rows: Mapping[str, Tensor]) -> None:
        """Give the new ids of a side rows to start from, in place of those of a new model.

        Args:
            rows: by table, one for each new id in the order of their numbers, such as `ncf.fold_in` returns.

        Raises:
            ValueError: if the model does not have such a table, or so many new rows.
        """
        sides: dict[str, Side] = {table.name: table.side for table in self.model.embeddings.tables}
        if unknown := sorted(set(rows) - set(sides)):
            raise ValueError(f"rows has the table {unknown[0]!r}: the model has {', '.join(sides)}")
        sums = self.model.embeddings.weights()
        for name, given in rows.items():
            new = (self._old(sides[name]) < 0).nonzero()[:, 0].to(sums[name].device)
            if given.shape != (wanted := (len(new), sums[name].shape[1])):
                raise ValueError(f"rows[{name!r}] is {list(given.shape)}, for new rows of {list(wanted)}")
            weight = self.model.embeddings.weight(name)
            # What an id's features add to its own row stays as it is.
            weight[new] += given.to(weight) - sums[name][new]

    def _old(self, side: Side) -> Tensor:
        check_choice("side", side, ("user", "item"))
        return self.old_users if side == "user" else self.old_items

    def _check_numbers(self, theirs: Vocabulary | None, side: Side) -> None:
        """Check that ids with the old model's numbers are the ids that the new model has for them."""
        ours: Vocabulary | None = getattr(self.model, f"{side}_ids")
        if ours is None or theirs is None or isinstance(ours, HashedVocabulary):
            return
        kept = (self._old(side) >= 0).nonzero()[:, 0]
        old = self._old(side)[kept]
        if int(old.max()) >= len(theirs) or not theirs.values.take(from_tensor(old)).equals(
            ours.values.take(from_tensor(kept))
        ):
            raise ValueError(
                f"the interactions number other {side} ids than the model that was extended: give those that it was "
                f"trained on, or number them with {side}_ids=model.{side}_ids"
            )


def extend(
    model: EmbeddingModel,
    interactions: Interactions,
    *,
    user_features: Features | None = None,
    item_features: Features | None = None,
    drop: bool = False,
) -> Grown:
    """A model that has the users and items of some interactions as well.

    Known ids keep their numbers and rows, new ids get the numbers that follow. A new row has the values that it would
    have had in a model built with so many rows: they depend on the seed, the table and the row's number alone. With
    ``drop`` the numbers of ids that are left out are closed up.

    Raw ids are matched by the vocabularies of the model and of the interactions. Where one has none, its numbers are
    taken as they are.

    A new id that has features has a row of its own of zero, so that its features stand in for it.

    Args:
        model: a trained model, which is not changed. One without values, from ``ncf.load(path, device="meta")``, gives
            another such one, to be sharded.
        interactions: the new log.
        user_features: of new users, and of known ones whose features have changed, read with
            ``like=model.features("user")``; others keep theirs. Their ids become the model's as well.
        item_features: likewise of items.
        drop: leave out users and items that occur neither in the interactions nor in the features.

    Returns:
        `Grown`: the model, and the interactions with its numbers.

    Raises:
        TypeError: if the interactions are something else.
        ValueError: if the model is sharded, is to drop rows without having values, its raw ids are of another type, or
            features were not read like its own.

    Example::

        >>> from ncf import GMF, Interactions, extend
        >>> last_week = Interactions.from_arrays(["bob", "dan"], ["tea", "milk"])
        >>> model = GMF(last_week.num_users, last_week.num_items)
        >>> model.user_ids, model.item_ids = last_week.user_ids, last_week.item_ids
        >>> grown = extend(model, Interactions.from_arrays(["ann", "bob"], ["tea", "tea"]))
        >>> grown.model.user_ids.values.to_pylist(), grown.interactions.users
        (['bob', 'dan', 'ann'], tensor([2, 0]))
    """
    if not isinstance(interactions, Interactions):
        raise TypeError(
            f"interactions are {type(interactions).__name__}: make them with Interactions.from_arrays(users, items)"
        )
    if model.embeddings.is_sharded:
        raise ValueError('the model is sharded: save it and load it with device="meta"')
    if drop and model.embeddings.is_meta:
        raise ValueError("the model has no values, and rows of it are to be dropped: load it on a device")
    users, user_ids, old_users, of_users = _joined(model, interactions, user_features, "user", drop)
    items, item_ids, old_items, of_items = _joined(model, interactions, item_features, "item", drop)
    numbered = Interactions(
        users, items, interactions.timestamps, len(old_users), len(old_items), user_ids, item_ids
    )
    config: dict[str, Any] = {**model.config, "num_users": len(old_users), "num_items": len(old_items)}
    for side, given, old, place in (
        ("user", user_features, old_users, of_users),
        ("item", item_features, old_items, of_items),
    ):
        if given is not None or f"{side}_features" in config:
            config[f"{side}_features"] = _features(model, side, given, old, place)
    device = "meta" if model.embeddings.is_meta else model.device
    grown = type(model)(**config, device=device)
    grown.user_ids, grown.item_ids = user_ids, item_ids
    before, state = model.state_dict(), grown.state_dict()
    for table in model.embeddings.tables:
        name = table_weight(table.name)
        numbers = old_users if table.side == "user" else old_items
        kept = _table_rows(numbers, model, grown, table.side)
        if model.embeddings.is_meta:
            fillers = grown.embeddings.table_fillers
            fillers[table.name] = _pieced(
                model.embeddings.table_fillers[table.name], fillers[table.name], kept
            )
        else:
            before[name] = _moved(before[name], state[name].to(before[name].dtype), kept)
    buffers = {name for name, _ in grown.named_buffers()}
    dense = {name: value.clone() for name, value in before.items() if not value.is_meta}
    dense |= {name: state[name].to(before[name].dtype) for name in buffers}
    grown.load_state_dict(dense, strict=not model.embeddings.is_meta, assign=True)
    grown.requires_grad_(True)
    return Grown(
        model=grown.train(model.training), interactions=numbered, old_users=old_users, old_items=old_items
    )


def _moved(old: Tensor, new: Tensor, numbers: Tensor) -> Tensor:
    """Rows of ``old`` wherever their numbers are now, and rows of ``new`` elsewhere."""
    kept = (numbers >= 0).nonzero()[:, 0].to(old.device)
    new = new.detach().clone()
    new[kept] = old.detach()[numbers.to(old.device)[kept]]
    return new


def _carried(value: Any, numbers: Tensor | None, rows: int) -> Any:
    """An optimizer's state; of a table of that many rows, with its rows where their numbers are now."""
    if not isinstance(value, Tensor):
        return value
    if numbers is None or value.dim() == 0 or len(value) != rows:
        return value.clone()
    return _moved(value, value.new_zeros(len(numbers), *value.shape[1:]), numbers)


def _table_rows(numbers: Tensor, before: EmbeddingModel, after: EmbeddingModel, side: Side) -> Tensor:
    """The old row of each row of the new tables, ``-1`` for a new one: of ids, then of features."""
    size = getattr(before, f"num_{side}s")
    features = before.embeddings.rows[side] - size
    rows = torch.arange(after.embeddings.rows[side] - len(numbers), dtype=torch.int64, device="cpu")
    return torch.cat([numbers, (rows + size).where(rows < features, -1)])


def _pieced(old: TableFiller, new: TableFiller, numbers: Tensor) -> TableFiller:
    """A filler that takes kept rows of a table from where the old filler has them, others from the new filler."""
    follows = torch.where(numbers[:-1] < 0, numbers[1:] < 0, numbers[1:] == numbers[:-1] + 1)
    starts = [0, *((~follows).nonzero()[:, 0] + 1).tolist(), len(numbers)]

    def fill(out: Tensor, *, row: int, column: int) -> None:
        for first, last in pairwise(starts):
            start, end = max(first, row), min(last, row + len(out))
            if start >= end:
                continue
            part, place = out[start - row : end - row], int(numbers[first])
            if place < 0:
                new(part, row=start, column=column)
            else:
                old(part, row=place + start - first, column=column)

    return fill


def _features(
    model: EmbeddingModel, side: Any, given: Features | None, old: Tensor, place: Tensor
) -> Features:
    """The features of a grown side: those given, and of other known ids those that the model has."""
    own = model.features(side)
    if own is None:
        raise ValueError(
            f"{side}_features: the model was built without and has no rows for them: build one with them"
        )
    if given is None:
        return own.take(old)
    scales = {name: given.scales.get(name) for name in own.scales}
    if given.names[: len(own.names)] != own.names or scales != dict(own.scales):
        raise ValueError(
            f"{side}_features have other names or scales than the model's: read them with like=model.features({side!r})"
        )
    both = replace(
        given,
        offsets=torch.cat([own.offsets, own.offsets[-1] + given.offsets[1:]]),
        rows=torch.cat([own.rows, given.rows]),
        weights=torch.cat([own.weights, given.weights]),
        ids=None,
    )
    return both.take((place + len(own)).where(place >= 0, old))


def _joined(
    model: EmbeddingModel,
    interactions: Interactions,
    features: Features | None,
    side: Side,
    drop: bool,
) -> tuple[Tensor, Vocabulary | None, Tensor, Tensor]:
    """A column with the new numbers, the new vocabulary, and of each new number the old one and that in features."""
    numbers: Tensor = getattr(interactions, f"{side}s")
    ids: Vocabulary | None = getattr(model, f"{side}_ids")
    known: int = getattr(model, f"num_{side}s")
    sources = [(getattr(interactions, f"num_{side}s"), getattr(interactions, f"{side}_ids"), "interactions")]
    if features is not None:
        sources.append((len(features), features.ids, f"{side}_features"))
    old = torch.arange(known, dtype=torch.int64, device="cpu")
    places = []
    for count, theirs, name in sources:
        place, ids = _placed(len(old), ids, count, theirs, side, name)
        more = max(len(old), int(place.max()) + 1) - len(old)
        old = torch.cat([old, torch.full((more,), -1, dtype=torch.int64, device="cpu")])
        places.append(place)
    present = torch.ones(len(old), dtype=torch.bool, device="cpu")
    if drop:
        present = torch.zeros_like(present)
        present[places[0][numbers]] = True
        for place in places[1:]:
            present[place] = True
    if ids is not None and len(ids) != len(old):
        raise ValueError(
            f"{side}_ids is given on one side only, with {len(ids)} ids for {len(old)}: give both"
        )
    moved = (present.cumsum(0) - 1).where(present, -1)
    in_features = torch.full((int(present.sum()),), -1, dtype=torch.int64, device="cpu")
    for place in places[1:]:
        in_features[moved[place]] = torch.arange(len(place), dtype=torch.int64, device="cpu")
    if drop and ids is not None:
        ids = ids.restrict(present.nonzero()[:, 0])
    return moved[places[0]][numbers], ids, old[present], in_features


def _placed(
    known: int, own: Vocabulary | None, count: int, theirs: Vocabulary | None, side: Side, name: str
) -> tuple[Tensor, Vocabulary | None]:
    """The number that each of ``count`` ids has now or gets, and the vocabulary with the new ones."""
    if own is None or theirs is None:
        return torch.arange(count, dtype=torch.int64, device="cpu"), own if theirs is None else theirs
    if isinstance(own, HashedVocabulary) and own.fingerprint == theirs.fingerprint:
        return torch.arange(count, dtype=torch.int64, device="cpu"), own
    if own.values.type != theirs.values.type:
        raise ValueError(
            f"{side}_ids holds {theirs.values.type} in the {name} and {own.values.type} in the model: convert them"
        )
    place = places_among(own.values, theirs.values)
    new = (place < 0).nonzero()[:, 0]
    place[new] = known + torch.arange(len(new), dtype=torch.int64, device="cpu")
    return place, Vocabulary(pa.concat_arrays([own.values, theirs.values.take(from_tensor(new))]))
