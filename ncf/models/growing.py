"""More users and items for a trained model, or fewer: rows of known ids are kept, new rows start as in a new model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ncf.data.columns import from_tensor, to_tensor
from ncf.data.interactions import Interactions
from ncf.data.vocabulary import Vocabulary
from ncf.models.base import EmbeddingModel
from ncf.models.embeddings import Side, TableFiller
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
            onto.state[after[name]] = {
                key: self._carried(value, side, len(parameter)) for key, value in state.items()
            }

    def renumbered(self, interactions: Interactions) -> Interactions:
        """Interactions numbered for the old model, such as those it was trained on, with the new model's numbers.

        Args:
            interactions: with the old model's numbers; users and items that were dropped are left out.

        Raises:
            ValueError: if no interaction is left.
        """
        columns = {}
        for side in ("user", "item"):
            old: Tensor = getattr(self, f"old_{side}s")
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
            ValueError: if the share is not between 0 and 1.
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

    def _carried(self, value: Any, side: Side | None, rows: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        if side is None or value.dim() == 0 or len(value) != rows:
            return value.clone()
        return _moved(value, value.new_zeros(len(self._old(side)), *value.shape[1:]), self._old(side))

    def _old(self, side: Side) -> Tensor:
        return self.old_users if side == "user" else self.old_items


def extend(model: EmbeddingModel, interactions: Interactions, *, drop: bool = False) -> Grown:
    """A model that has the users and items of some interactions as well.

    Known ids keep their numbers and rows, new ids get the numbers that follow. A new row has the values that it would
    have had in a model built with so many rows: they depend on the seed, the table and the row's number alone. With
    ``drop`` the numbers of ids that are left out are closed up.

    Raw ids are matched by the vocabularies of the model and of the interactions. Where one has none, its numbers are
    taken as they are.

    Args:
        model: a trained model, which is not changed. One without values, from ``ncf.load(path, device="meta")``, gives
            another such one, to be sharded.
        interactions: the new log.
        drop: leave out users and items that do not occur in the interactions.

    Returns:
        `Grown`: the model, and the interactions with its numbers.

    Raises:
        ValueError: if the model is sharded, is to drop rows without having values, or its raw ids are of another type.

    Example::

        >>> from ncf import GMF, Interactions, extend
        >>> last_week = Interactions.from_arrays(["bob", "dan"], ["tea", "milk"])
        >>> model = GMF(last_week.num_users, last_week.num_items)
        >>> model.user_ids, model.item_ids = last_week.user_ids, last_week.item_ids
        >>> grown = extend(model, Interactions.from_arrays(["ann", "bob"], ["tea", "tea"]))
        >>> grown.model.user_ids.values.to_pylist(), grown.interactions.users
        (['bob', 'dan', 'ann'], tensor([2, 0]))
    """
    if model.embeddings.is_sharded:
        raise ValueError('the model is sharded: save it and load it with device="meta"')
    if drop and model.embeddings.is_meta:
        raise ValueError("the model has no values, and rows of it are to be dropped: load it on a device")
    users, user_ids, old_users = _joined(model, interactions, "user", drop)
    items, item_ids, old_items = _joined(model, interactions, "item", drop)
    numbered = Interactions(
        users, items, interactions.timestamps, len(old_users), len(old_items), user_ids, item_ids
    )
    config = {**model.config, "num_users": len(old_users), "num_items": len(old_items)}
    device = "meta" if model.embeddings.is_meta else model.device
    grown = type(model)(**config, device=device)
    grown.user_ids, grown.item_ids = user_ids, item_ids
    old, state = model.state_dict(), grown.state_dict()
    for table in model.embeddings.tables:
        name = f"embeddings.ebc.embedding_bags.{table.name}.weight"
        kept = old_users if table.side == "user" else old_items
        if model.embeddings.is_meta:
            fillers = grown.embeddings.table_fillers
            fillers[table.name] = _stacked(
                model.embeddings.table_fillers[table.name], len(old[name]), fillers[table.name]
            )
        else:
            old[name] = _moved(old[name], state[name].to(old[name].dtype), kept)
    dense = {name: value.clone() for name, value in old.items() if not value.is_meta}
    grown.load_state_dict(dense, strict=not model.embeddings.is_meta, assign=True)
    grown.requires_grad_(True)
    return Grown(
        model=grown.train(model.training), interactions=numbered, old_users=old_users, old_items=old_items
    )


def _moved(old: Tensor, new: Tensor, numbers: Tensor) -> Tensor:
    """Rows of ``old`` wherever their numbers are now, and those of ``new`` elsewhere."""
    kept = (numbers >= 0).nonzero()[:, 0].to(old.device)
    new = new.detach().clone()
    new[kept] = old.detach()[numbers.to(old.device)[kept]]
    return new


def _stacked(first: TableFiller, rows: int, then: TableFiller) -> TableFiller:
    """A filler that takes the first rows of a table from one filler, and those that follow from another."""

    def fill(out: Tensor, *, row: int, column: int) -> None:
        cut = min(max(rows - row, 0), len(out))
        if cut:
            first(out[:cut], row=row, column=column)
        if cut < len(out):
            then(out[cut:], row=row + cut, column=column)

    return fill


def _joined(
    model: EmbeddingModel, interactions: Interactions, side: Side, drop: bool
) -> tuple[Tensor, Vocabulary | None, Tensor]:
    """A column with the new numbers, the new vocabulary, and the old number of each new one."""
    size: int = getattr(model, f"num_{side}s")
    count: int = getattr(interactions, f"num_{side}s")
    numbers: Tensor = getattr(interactions, f"{side}s")
    own: Vocabulary | None = getattr(model, f"{side}_ids")
    theirs: Vocabulary | None = getattr(interactions, f"{side}_ids")
    if own is None or theirs is None:
        found = torch.arange(count, dtype=torch.int64, device="cpu").where(
            torch.arange(count, dtype=torch.int64, device="cpu") < size, -1
        )
        known = size
    else:
        if own.values.type != theirs.values.type:
            raise ValueError(
                f"{side}_ids holds {theirs.values.type} in the interactions and {own.values.type} in the model: "
                "convert them"
            )
        found = to_tensor(pc.index_in(theirs.values, value_set=own.values).fill_null(-1))
        known = len(own)
    new = (found < 0).nonzero()[:, 0]
    old = torch.cat(
        [
            torch.arange(known, dtype=torch.int64, device="cpu"),
            torch.full((len(new),), -1, dtype=torch.int64, device="cpu"),
        ]
    )
    place = found.clone()
    place[new] = known + torch.arange(len(new), dtype=torch.int64, device="cpu")
    if drop:
        present = place[numbers].bincount(minlength=len(old)) > 0
        place, old = (present.cumsum(0) - 1)[place], old[present]
    else:
        present = torch.ones(len(old), dtype=torch.bool, device="cpu")
    vocabulary = own if theirs is None else theirs
    if own is not None and theirs is not None:
        values = pa.concat_arrays([own.values, theirs.values.take(from_tensor(new))])
        vocabulary = Vocabulary(values.take(from_tensor(present.nonzero()[:, 0])))
    elif vocabulary is not None and len(vocabulary) != len(old):
        raise ValueError(
            f"{side}_ids is given on one side only, with {len(vocabulary)} ids for {len(old)}: give both"
        )
    return place[numbers], vocabulary, old
