"""Splits of a log of interactions: a set to train on, and held-out sets for validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ncf.data.filters import lists_of_keys, sorted_keys, stable_order
from ncf.data.interactions import Interactions
from ncf.utils.checks import check_choice, check_rank, of_type, whole
from ncf.utils.jagged import lengths_to_offsets
from ncf.utils.seeding import stream

_MAKE = "Interactions.from_arrays(users, items) makes one"


@dataclass(frozen=True, eq=False)
class Split:
    """Interactions to train on, and held-out interactions.

    Args:
        train: the training set.
        validation: the set for choosing epochs and settings; ``None`` without one.
        test: the set for the final figure. A user may have one held-out interaction or several.
        history: interactions of users held out altogether, see `hold_out_users`. Models are not trained on them,
            but may answer from them.

    Example::

        >>> from ncf import Interactions, leave_one_out
        >>> split = leave_one_out(Interactions.from_arrays([0, 0, 0], ["a", "b", "c"]))
        >>> split, split.with_validation_in_train()
        (Split(train 1, validation 1, test 1), Split(train 2, test 1))
    """

    train: Interactions
    validation: Interactions | None
    test: Interactions
    history: Interactions | None = None

    def __repr__(self) -> str:
        names = ("train", "validation", "test", "history")
        sizes = [f"{name} {len(part)}" for name in names if (part := getattr(self, name)) is not None]
        untested = len(self.users_without_test)
        note = f"; users without test interactions: {untested}" if untested and self.history is None else ""
        return f"Split({', '.join(sizes)}{note})"

    @property
    def sets(self) -> list[Interactions]:
        """The sets that exist, in the order of the fields."""
        every = (self.train, self.validation, self.test, self.history)
        return [part for part in every if part is not None]

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of both vocabularies, see `Vocabulary.fingerprint`; ``None`` where ids are plain numbers."""
        return self.train.fingerprint

    @property
    def users_without_test(self) -> Tensor:
        """Users with training interactions but no test interaction, ascending, int64."""
        trained, tested = (part.users.bincount(minlength=part.num_users) for part in (self.train, self.test))
        return ((trained > 0) & (tested == 0)).nonzero()[:, 0]

    def csr(self) -> tuple[Tensor, Tensor]:
        """Return the items that each user interacted with in any set, ascending.

        Returns:
            ``offsets [num_users + 1]`` and ``items [N]``, both int64: user u has ``items[offsets[u]:offsets[u + 1]]``.
        """
        num_users, num_items = self.train.num_users, self.train.num_items
        keys = torch.empty(sum(len(part) for part in self.sets), dtype=torch.int64, device="cpu")
        for part, place in zip(self.sets, keys.split([len(part) for part in self.sets]), strict=True):
            torch.add(part.items, part.users, alpha=num_items, out=place)
        keys = sorted_keys(keys, below=num_users * num_items)
        if bool((keys[1:] == keys[:-1]).any()):
            keys = keys.unique_consecutive()
        return lists_of_keys(keys, num_users, num_items)

    def for_rank(self, rank: int, world_size: int) -> Split:
        """Return the interactions of one process of several: every ``world_size``-th user, from user ``rank`` on.

        Args:
            rank: number of the process.
            world_size: number of processes.

        Raises:
            ValueError: if ``rank`` is out of range, or, on every rank alike, if a process would have no users.
        """
        check_rank(rank, world_size)

        def mine(part: Interactions) -> Interactions:
            owners = part.users % world_size
            idle = (owners.bincount(minlength=world_size) == 0).nonzero()
            if len(idle):
                raise ValueError(
                    f"rank {int(idle[0])} of world_size = {world_size} would have no users to train on or to evaluate: "
                    "use fewer processes"
                )
            return part.take(owners == rank)

        validation, history = (
            None if part is None else mine(part) for part in (self.validation, self.history)
        )
        return Split(mine(self.train), validation, mine(self.test), history)

    def with_validation_in_train(self) -> Split:
        """Return the split with the validation set moved to the training set, for a last training."""
        if self.validation is None:
            return self
        sets = (self.train, self.validation)
        times = [part.timestamps for part in sets if part.timestamps is not None]
        users, items = (torch.cat([getattr(part, name) for part in sets]) for name in ("users", "items"))
        timestamps = torch.cat(times) if len(times) == len(sets) else None
        train = replace(self.train, users=users, items=items, timestamps=timestamps, dropped={}, shared=0)
        return Split(train, None, self.test, self.history)


def leave_one_out(interactions: Interactions, *, validation: bool = True, min_interactions: int = 3) -> Split:
    """Hold out each user's last interaction (He et al. 2017, section 4.1).

    The last is the interaction with the latest timestamp. Among equal timestamps, and where there are none, it is
    the interaction that stands last in the file: the sets then have the lines' numbers as timestamps. 415 of
    MovieLens-100K's 943 users have such a tie at the end, so results are comparable only under the same rule.

    Args:
        interactions: the whole log.
        validation: also hold out the interaction before the last, for choosing epochs and settings.
        min_interactions: users with fewer stay in the training set whole; `Split.users_without_test` lists them.

    Returns:
        `Split`, each set in file order.

    Raises:
        ValueError: as `leave_last` raises it.

    Example::

        >>> from ncf import Interactions, leave_one_out
        >>> interactions = Interactions.from_arrays([0, 0, 0, 1], [5, 6, 7, 5], [30, 10, 20, 10])
        >>> split = leave_one_out(interactions)
        >>> split
        Split(train 2, validation 1, test 1; users without test interactions: 1)
        >>> split.test.item_ids.decode(split.test.items)
        [5]
    """
    return leave_last(interactions, 1, validation=validation, min_interactions=min_interactions)


def leave_last(
    interactions: Interactions, n: int, *, validation: bool = True, min_interactions: int | None = None
) -> Split:
    """Hold out each user's last ``n`` interactions, in the order of `leave_one_out`.

    Args:
        interactions: the whole log.
        n: test interactions per user.
        validation: also hold out the ``n`` interactions before the last ``n``.
        min_interactions: users with fewer stay in the training set whole; by default one more than is held out.

    Returns:
        `Split`, each set in file order.

    Raises:
        TypeError: if ``interactions`` is something else.
        ValueError: if ``min_interactions`` would leave a user without a training interaction, or no user
            has enough.

    Example::

        >>> from ncf import Interactions, leave_last
        >>> leave_last(Interactions.from_arrays([0] * 5, [5, 6, 7, 8, 9]), 2)
        Split(train 1, validation 2, test 2)
    """
    of_type("interactions", interactions, Interactions, _MAKE)
    held_out = whole("n", n) * (2 if validation else 1)
    min_interactions = whole(
        "min_interactions", held_out + 1 if min_interactions is None else min_interactions
    )
    if min_interactions <= held_out:
        raise ValueError(
            f"min_interactions = {min_interactions}: with {held_out} held out a user needs at least {held_out + 1}"
        )
    if interactions.timestamps is None:
        lines = torch.arange(len(interactions), dtype=torch.int64, device="cpu")
        interactions = replace(interactions, timestamps=lines)
    users = interactions.users
    enough = users.bincount(minlength=interactions.num_users) >= min_interactions
    if not bool(enough.any()):
        raise ValueError(f"no user has {min_interactions} interactions: nothing can be held out")
    left = enough[users]
    sets = []
    for _ in range(2 if validation else 1):
        held = torch.zeros_like(left)
        for _ in range(n):
            last = _last(interactions, left)
            left[last], held[last] = False, True
        sets.append(interactions.take(held))
    train = interactions.take(left | ~enough[users])
    return Split(train, sets[1] if validation else None, sets[0])


def split_by_time(
    interactions: Interactions, at: float, *, validation_at: float | None = None, min_train: int = 1
) -> Split:
    """Hold out what comes after one moment, the same for all users.

    No model sees an interaction that is later than a test interaction. Leave-one-out does not guarantee that:
    one user's training interactions may be later than another user's test interaction.

    Args:
        interactions: the whole log, with timestamps.
        at: the moment, in the unit of the timestamps, as a whole number; or, as a float between 0 and 1, the share
            of the interactions before it. The test set begins with it.
        validation_at: an earlier moment of the same kind, at which the validation set begins.
        min_train: held-out interactions of users with fewer training interactions are left out.

    Returns:
        `Split`, each set in file order. Users may have several held-out interactions.

    Raises:
        TypeError: if ``interactions`` is something else.
        ValueError: if there are no timestamps, if ``validation_at`` is not before ``at``, or a set would be empty.

    Example::

        >>> from ncf import Interactions, split_by_time
        >>> log = Interactions.from_arrays([0, 0, 1, 1, 1], [5, 6, 5, 7, 8], [10, 40, 20, 30, 50])
        >>> split_by_time(log, at=40, validation_at=30)
        Split(train 2, validation 1, test 2)
    """
    of_type("interactions", interactions, Interactions, _MAKE)
    times = interactions.timestamps
    if times is None:
        raise ValueError(
            "interactions have no timestamps: read them with timestamp=..., or use split_by_ratio"
        )
    start = _moment(times, at, "at")
    early = start if validation_at is None else _moment(times, validation_at, "validation_at")
    if validation_at is not None and early >= start:
        raise ValueError(f"validation_at = {validation_at} is not before at = {at}: choose an earlier moment")
    train = times < early
    users = interactions.users
    trained = users[train].bincount(minlength=interactions.num_users) >= whole(
        "min_train", min_train, least=0
    )
    test = (times >= start) & trained[users]
    before = (times >= early) & (times < start) & trained[users]
    return _split(interactions, train, before if validation_at is not None else None, test)


def split_by_ratio(
    interactions: Interactions,
    test: float = 0.2,
    *,
    validation: float = 0.0,
    by: Literal["random", "time"] = "random",
    seed: int = 0,
) -> Split:
    """Hold out a share of each user's interactions.

    Args:
        interactions: the whole log.
        test: share of the test set. A user with n interactions gives ``floor(n * test)``, and keeps at least one
            training interaction.
        validation: share of the validation set, likewise; 0 for none.
        by: ``"random"``, or ``"time"`` for the latest, in the order of `leave_one_out`.
        seed: same seed, same split.

    Returns:
        `Split`, each set in file order. Users may have several held-out interactions.

    Raises:
        TypeError: if ``interactions`` is something else.
        ValueError: if the shares are not between 0 and 1 together, or a set would be empty.

    Example::

        >>> from ncf import Interactions, split_by_ratio
        >>> split_by_ratio(Interactions.from_arrays([0] * 10, range(10)), test=0.2, validation=0.1)
        Split(train 7, validation 1, test 2)
    """
    of_type("interactions", interactions, Interactions, _MAKE)
    if not (test > 0 and validation >= 0 and test + validation < 1):
        raise ValueError(
            f"test = {test}, validation = {validation}: shares lie between 0 and 1, and leave some to train on"
        )
    check_choice("by", by, ("random", "time"))
    order: Tensor | None = None  # of the file
    if by == "random":
        order = _permutation(len(interactions), seed)
    elif interactions.timestamps is not None:
        order = stable_order(interactions.timestamps)
    counts = interactions.users.bincount(minlength=interactions.num_users)[interactions.users]  # [N]
    from_end = counts - 1 - _places(interactions.users, order)  # [N], 0 for the last of each user
    tested, validated = ((counts * share + 1e-9).to(torch.int64) for share in (test, validation))
    held = from_end < tested
    before = ~held & (from_end < tested + validated)
    return _split(interactions, ~(held | before), before if validation else None, held)


def k_folds(interactions: Interactions, k: int = 5, *, seed: int = 0) -> Iterator[Split]:
    """Return ``k`` splits for cross-validation: each interaction is in exactly one test set.

    Args:
        interactions: the whole log.
        k: number of folds. Each user's interactions spread over them evenly.
        seed: same seed, same folds.

    Returns:
        An iterator over `Split`, each without a validation set. Test interactions of users who have no other
        interaction are in no test set.

    Raises:
        TypeError: if ``interactions`` is something else.
        ValueError: if ``k`` is no whole number of at least 2, or a set would be empty.

    Example::

        >>> from ncf import Interactions, k_folds
        >>> [len(split.test) for split in k_folds(Interactions.from_arrays([0] * 5, range(5)), k=2)]
        [3, 2]
    """
    of_type("interactions", interactions, Interactions, _MAKE)
    whole("k", k, least=2)
    users = interactions.users
    shuffled = _permutation(len(users), seed)
    # A user's rows go to consecutive folds, from a fold of the user's own on, so that folds are of one size.
    fold = (_places(users, shuffled) + users) % k  # [N]
    several = (users.bincount(minlength=interactions.num_users) > 1)[users]
    for number in range(k):
        test = (fold == number) & several
        yield _split(interactions, ~test, None, test)


def hold_out_users(
    interactions: Interactions, share: float = 0.1, *, held_out: float = 0.2, seed: int = 0
) -> Split:
    """Hold out users altogether, to measure answers to new users (Marlin 2004; Liang et al. 2018).

    Args:
        interactions: the whole log.
        share: share of the users to hold out, at random.
        held_out: share of such a user's interactions that make up the test set, at random, at least one. The other
            ones are the user's ``history``: a model may answer from them, but is not trained on them.
        seed: same seed, same split.

    Returns:
        `Split` with ``history``; users with a single interaction are not held out.

    Raises:
        TypeError: if ``interactions`` is something else.
        ValueError: if a share is not between 0 and 1, or a set would be empty.

    Example::

        >>> from ncf import Interactions, hold_out_users
        >>> log = Interactions.from_arrays([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 0, 1, 2, 3])
        >>> hold_out_users(log, 0.5, held_out=0.25)
        Split(train 4, test 1, history 3)
    """
    of_type("interactions", interactions, Interactions, _MAKE)
    for name, value in (("share", share), ("held_out", held_out)):
        if not 0 < value < 1:
            raise ValueError(f"{name} = {value}: a share lies between 0 and 1")
    users = interactions.users
    counts = users.bincount(minlength=interactions.num_users)
    eligible = (counts > 1).nonzero()[:, 0]
    chosen = torch.zeros(interactions.num_users, dtype=torch.bool, device="cpu")
    chosen[eligible[_permutation(len(eligible), seed, "users")][: round(share * len(eligible))]] = True
    counts = counts[users]
    taken = (counts * held_out + 1e-9).to(torch.int64).clamp(min=1)
    last = counts - 1 - _places(users, _permutation(len(users), seed)) < taken
    split = _split(interactions, ~chosen[users], None, chosen[users] & last)
    return Split(split.train, None, split.test, interactions.take(chosen[users] & ~last))


def _split(interactions: Interactions, train: Tensor, validation: Tensor | None, test: Tensor) -> Split:
    """The split of three sets of rows, each bool ``[N]``."""
    for name, rows in (("training", train), ("validation", validation), ("test", test)):
        if rows is not None and not bool(rows.any()):
            raise ValueError(f"the {name} set would be empty: choose other shares or moments")
    held = None if validation is None else interactions.take(validation)
    return Split(interactions.take(train), held, interactions.take(test))


def _moment(times: Tensor, at: float, name: str) -> int:
    """A moment in the unit of the timestamps."""
    if isinstance(at, bool) or not isinstance(at, int | float | np.integer):
        raise ValueError(f"{name} = {at!r}: give a whole number in the unit of the timestamps, or a share")
    if not isinstance(at, float):
        return int(at)
    if not 0 < at < 1:
        raise ValueError(f"{name} = {at}: a float is the share before it, between 0 and 1; a time is an int")
    return int(times.kthvalue(min(len(times), int(len(times) * at) + 1)).values)


def _permutation(length: int, seed: int, *names: object) -> Tensor:
    generator = stream(whole("seed", seed, least=None), "split", *names)
    return torch.randperm(length, generator=generator, dtype=torch.int64, device="cpu")


def _places(users: Tensor, order: Tensor | None) -> Tensor:
    """Place of each row among its user's rows, from 0, when rows are read in this order; ``[N]``."""
    by_user = stable_order(users if order is None else users[order])
    order = by_user if order is None else order[by_user]
    starts = lengths_to_offsets(users.bincount())[:-1]
    places = torch.empty_like(users)
    places[order] = torch.arange(len(users), dtype=torch.int64, device="cpu") - starts[users[order]]
    return places


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
