"""Leave-one-out: each user's last interaction is held out for the test, the one before for validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.utils.checks import check_rank, of_type, whole
from ncf.utils.jagged import lengths_to_offsets


@dataclass(frozen=True, eq=False)
class Split:
    """Interactions to learn from, and those held out.

    Args:
        train: what a model may learn from; ``None`` where only a test file was read.
        validation: at most one interaction per user, for choosing; ``None`` if none was asked for.
        test: at most one interaction per user, for the final figure.

    Example::

        >>> from ncf import Interactions, leave_one_out
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0], ["a", "b", "c"]))
        >>> split, split.merged()  # the validation part given back, for a last training
        (Split(train 1, validation 1, test 1), Split(train 2, test 1))
    """

    train: Interactions | None
    validation: Interactions | None
    test: Interactions

    def __repr__(self) -> str:
        names = ("train", "validation", "test")
        sizes = [f"{name} {len(part)}" for name in names if (part := getattr(self, name)) is not None]
        unheld = len(self.unheld)
        note = f"; users too short to hold one out: {unheld}" if unheld else ""
        return f"Split({', '.join(sizes)}{note})"

    @property
    def parts(self) -> list[Interactions]:
        """The parts that are there."""
        return [part for part in (self.train, self.validation, self.test) if part is not None]

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of both vocabularies, see `Vocabulary.fingerprint`; ``None`` where ids are plain numbers."""
        return self.test.fingerprint

    @property
    def unheld(self) -> Tensor:
        """Users who are trained on but have too few interactions to be tested, ascending, int64."""
        if self.train is None:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        trained, tested = (part.users.bincount(minlength=part.num_users) for part in (self.train, self.test))
        return ((trained > 0) & (tested == 0)).nonzero()[:, 0]

    def csr(self) -> tuple[Tensor, Tensor]:
        """The items that each user touched in any part, ascending.

        Returns:
            ``offsets [num_users + 1]`` and ``items [N]``, both int64: user u has ``items[offsets[u]:offsets[u + 1]]``.
        """
        num_users, num_items = self.test.num_users, self.test.num_items
        keys = torch.cat([part.users * num_items + part.items for part in self.parts]).unique()  # sorted
        return lengths_to_offsets(torch.bincount(keys // num_items, minlength=num_users)), keys % num_items

    def part(self, rank: int, world_size: int) -> Split:
        """The interactions of one process of several: every ``world_size``-th user, from number ``rank`` on.

        Args:
            rank: number of the process.
            world_size: how many there are; a world of one has everything.

        Raises:
            ValueError: if the rank is not one of the world's, or, on every rank alike, if one would have nothing.
        """
        check_rank(rank, world_size)

        def mine(part: Interactions) -> Interactions:
            owners = part.users % world_size
            idle = (owners.bincount(minlength=world_size) == 0).nonzero()
            if len(idle):
                raise ValueError(
                    f"rank {int(idle[0])} of world_size = {world_size} would have no users to train on or to judge: "
                    "use fewer processes"
                )
            return part.take(owners == rank)

        train, validation = (None if part is None else mine(part) for part in (self.train, self.validation))
        return Split(train, validation, mine(self.test))

    def merged(self) -> Split:
        """The validation part given back to the training part, for a last training with what was chosen."""
        if self.validation is None or self.train is None:
            return self
        parts = (self.train, self.validation)
        timestamps = None
        if self.train.timestamps is not None and self.validation.timestamps is not None:
            timestamps = torch.cat([self.train.timestamps, self.validation.timestamps])
        train = Interactions(
            torch.cat([part.users for part in parts]),
            torch.cat([part.items for part in parts]),
            timestamps,
            self.train.num_users,
            self.train.num_items,
            self.train.user_ids,
            self.train.item_ids,
        )
        return Split(train, None, self.test)


def leave_one_out(interactions: Interactions, *, validation: bool = True, min_interactions: int = 3) -> Split:
    """Hold out each user's last interaction (He et al. 2017, section 4.1).

    The last is the one with the latest timestamp; among equal timestamps, and where there are none,
    the one that stands last in the file. 415 of MovieLens-100K's 943 users have such a tie at the end,
    so results are comparable only under the same rule.

    Args:
        interactions: the whole record.
        validation: also hold out the one before the last, for choosing epochs and settings.
        min_interactions: users with fewer stay in the training part whole; `Split.unheld` lists them.

    Returns:
        `Split`, each part in file order.

    Raises:
        TypeError: if ``interactions`` is something else.
        ValueError: if ``min_interactions`` would leave a user without a training interaction, or no user
            has enough.

    Example::

        >>> from ncf import Interactions, leave_one_out
        >>> interactions = Interactions.from_arrays([0, 0, 0, 1], [5, 6, 7, 5], [30, 10, 20, 10])
        >>> split = leave_one_out(interactions)
        >>> split
        Split(train 2, validation 1, test 1; users too short to hold one out: 1)
        >>> split.test.item_ids.decode(split.test.items)
        [5]
    """
    of_type("interactions", interactions, Interactions, "Interactions.from_arrays(users, items) makes one")
    min_interactions = whole("min_interactions", min_interactions)
    held_out = 2 if validation else 1
    if min_interactions <= held_out:
        raise ValueError(
            f"min_interactions = {min_interactions}: with {held_out} held out a user needs at least {held_out + 1}"
        )
    users = interactions.users
    enough = users.bincount(minlength=interactions.num_users) >= min_interactions
    if not bool(enough.any()):
        raise ValueError(f"no user has {min_interactions} interactions: nothing can be held out")
    eligible = enough[users]
    test = _last(interactions, eligible)
    train = torch.ones_like(eligible)
    train[test] = False
    before = None
    if validation:
        before = _last(interactions, eligible & train)
        train[before] = False
    return Split(
        interactions.take(train),
        None if before is None else interactions.take(before),
        interactions.take(test),
    )


def _last(interactions: Interactions, among: Tensor) -> Tensor:
    """The last of the rows ``among`` (bool, ``[N]``) of each user who has one, ascending."""
    users, num_users = interactions.users, interactions.num_users
    if interactions.timestamps is not None:
        times = interactions.timestamps.where(among, torch.iinfo(torch.int64).min)
        among = among & (times == _highest(users, times, num_users)[users])  # ties are left
    rows = among.nonzero()[:, 0]
    users = users[rows]
    last = _highest(users, rows, num_users)
    return last[users.bincount(minlength=num_users) > 0].sort().values


def _highest(groups: Tensor, values: Tensor, num_groups: int) -> Tensor:
    """The highest value of each group, ``[num_groups]``; anything for a group without one."""
    highest = torch.zeros(num_groups, dtype=values.dtype, device=values.device)
    return highest.scatter_reduce_(0, groups, values, "amax", include_self=False)
