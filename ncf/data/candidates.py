"""Candidates of ranking: the held-out items among sampled candidates, or in the whole catalogue.

Both are drawn once and written down, so that every model is evaluated on the same lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Literal

import torch
from torch import Tensor

from ncf.data.filters import sorted_keys
from ncf.data.interactions import Interactions
from ncf.data.sampling import UnseenItems
from ncf.data.splitting import Split
from ncf.utils.checks import check_choice, check_ids, check_rank, of_type, whole
from ncf.utils.jagged import lengths_to_offsets, select_lists

Part = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """One held-out item per user, and the sampled items it must be ranked among.

    Args:
        users: users to evaluate, ``[U]``, int64.
        positives: the held-out item of each user, ``[U]``, int64.
        negatives: the sampled items of each user, ``[U, C]``, int64; ``-1`` is padding.
        fingerprint: of the vocabularies behind the ids, see `Vocabulary.fingerprint`.
        untested: number of trained users who have no held-out item, and are therefore not evaluated.

    Raises:
        ValueError: if the shapes or the types do not fit together.

    Example::

        >>> import torch
        >>> from ncf import Candidates
        >>> candidates = Candidates(torch.tensor([0, 2]), torch.tensor([5, 1]), torch.tensor([[3, 4], [0, -1]]))
        >>> candidates.items
        tensor([[ 5,  3,  4],
                [ 1,  0, -1]])
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    fingerprint: str | None = None
    untested: int = 0

    def __post_init__(self) -> None:
        for name, dims in (("users", 1), ("positives", 1), ("negatives", 2)):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.dim() != dims:
                raise ValueError(
                    f"{name} must be an int64 tensor with {dims} dimension(s), "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
            if len(value) != len(self.users):
                raise ValueError(f"{name} has {len(value)} rows for {len(self.users)} users")
        for name, lowest in (("users", 0), ("positives", 0), ("negatives", -1)):
            check_ids(getattr(self, name), name, lowest=lowest)

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        return f"Candidates({len(self)} users, 1 + {self.negatives.shape[1]} items each)"

    @property
    def items(self) -> Tensor:
        """The positive, then the negatives, ``[U, 1 + C]``."""
        return torch.cat([self.positives[:, None], self.negatives], dim=1)

    def to(self, device: torch.device | str) -> Candidates:
        """The same candidates on another device."""
        users, positives, negatives = (
            tensor.to(device) for tensor in (self.users, self.positives, self.negatives)
        )
        return replace(self, users=users, positives=positives, negatives=negatives)

    def for_rank(self, rank: int, world_size: int) -> Candidates:
        """Return every ``world_size``-th user, from user ``rank`` on, for one process of several."""
        check_rank(rank, world_size)
        mine = slice(rank, None, world_size)
        return replace(
            self, users=self.users[mine], positives=self.positives[mine], negatives=self.negatives[mine]
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the candidates to a safetensors file, complete or not at all."""
        from ncf.utils.files import write_tensors

        tensors = {"users": self.users, "positives": self.positives, "negatives": self.negatives}
        metadata = {
            "fingerprint": self.fingerprint or "",
            "digest": _digest(tensors, self.fingerprint),
            "untested": str(self.untested),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Candidates:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file does not hold the three tensors of candidates, or is damaged.
        """
        from ncf.utils.files import read_metadata, read_tensors

        tensors = read_tensors(path, names=("users", "positives", "negatives"))
        metadata = read_metadata(path)
        fingerprint = metadata.get("fingerprint") or None
        digest = _digest(tensors, fingerprint)
        if metadata.get("digest", digest) != digest:
            raise ValueError(f"{path} is damaged, its digest does not fit: save the candidates again")
        return cls(**tensors, fingerprint=fingerprint, untested=int(metadata.get("untested", 0)))


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Each user's held-out items, to be ranked among every item that the user has not interacted with.

    Args:
        users: users to evaluate, ``[U]``, int64, each once.
        positives: the held-out item of each user, ``[U]``; with ``positive_offsets`` the held-out items of all
            users, one user behind the other, ``[P]``, ascending within a user.
        num_items: size of the catalogue.
        seen_offsets: where each user's seen items start in ``seen_items``, ``[U + 1]``.
        seen_items: the items to leave out, ascending within a user, ``[S]``; never one of the user's positives.
        fingerprint: of the vocabularies behind the ids, see `Vocabulary.fingerprint`.
        positive_offsets: where each user's held-out items start in ``positives``, ``[U + 1]``; ``None`` where each
            user has exactly one.
        untested: number of trained users who have no held-out item, and are therefore not evaluated.

    Raises:
        ValueError: if the shapes, types or ids do not fit together.

    Example::

        >>> import torch
        >>> from ncf import Catalogue
        >>> Catalogue(torch.tensor([7]), torch.tensor([2]), 5, torch.tensor([0, 2]), torch.tensor([0, 4]))
        Catalogue(1 users, 5 items less those seen)
    """

    users: Tensor
    positives: Tensor
    num_items: int
    seen_offsets: Tensor
    seen_items: Tensor
    fingerprint: str | None = None
    positive_offsets: Tensor | None = None
    untested: int = 0

    def __post_init__(self) -> None:
        seen, num_users = self.seen_items, self.users.numel()
        lengths = {
            "users": num_users,
            "positives": num_users if self.positive_offsets is None else self.positives.numel(),
            "seen_offsets": num_users + 1,
            "seen_items": seen.numel(),
            "positive_offsets": num_users + 1,
        }
        for name, length in lengths.items():
            value = getattr(self, name)
            if value is not None and (value.dtype != torch.int64 or value.shape != (length,)):
                raise ValueError(
                    f"{name} must be int64 of shape ({length},), got {value.dtype} {tuple(value.shape)}"
                )
        check_ids(self.users, "users")
        check_ids(self.positives, "positives", self.num_items, "num_items")
        check_ids(seen, "seen_items", self.num_items, "num_items")
        taken = self._keys("seen_items", self.seen_offsets, seen)
        wanted = self._keys("positives", self.held_out_offsets, self.positives)
        if self.positive_offsets is not None and bool((self.positive_offsets.diff() == 0).any()):
            raise ValueError("positive_offsets: a user has no held-out item, leave the user out")
        if len(taken):
            place = torch.searchsorted(taken, wanted).clamp_(max=len(taken) - 1)
            own = (taken[place] == wanted).nonzero()
            if len(own):
                place = place[own[0]]
                raise ValueError(
                    f"seen_items[{int(place)}] = {int(seen[place])} is one of the user's held-out items: leave it out"
                )

    def _keys(self, name: str, offsets: Tensor, items: Tensor) -> Tensor:
        """One number per (place of the user, item); raise unless they ascend, each once."""
        counts = offsets.diff()
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(items) or bool((counts < 0).any()):
            of = "seen_offsets" if name == "seen_items" else "positive_offsets"
            raise ValueError(f"{of} must rise from 0 to len({name}) = {len(items)}")
        keys = torch.repeat_interleave(counts) * self.num_items + items
        descends = (keys[1:] <= keys[:-1]).nonzero()
        if len(descends):
            place = int(descends[0]) + 1
            raise ValueError(
                f"{name}[{place}] = {int(items[place])}: the items of a user must ascend, each once"
            )
        return keys

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        several = "" if self.positive_offsets is None else f"{len(self.positives)} held-out items, "
        return f"Catalogue({len(self)} users, {several}{self.num_items} items less those seen)"

    @property
    def held_out_offsets(self) -> Tensor:
        """Starts of each user's held-out items in ``positives``, ``[U + 1]``, also where each user has one."""
        if self.positive_offsets is not None:
            return self.positive_offsets
        return torch.arange(len(self) + 1, dtype=torch.int64, device=self.users.device)

    def for_rank(self, rank: int, world_size: int) -> Catalogue:
        """Return every ``world_size``-th user, from user ``rank`` on, for one process of several."""
        check_rank(rank, world_size)
        mine = torch.arange(len(self), dtype=torch.int64, device=self.users.device)[rank::world_size]
        seen = select_lists(self.seen_offsets, self.seen_items, mine)
        offsets, positives = select_lists(self.held_out_offsets, self.positives, mine)
        return replace(
            self,
            users=self.users[mine],
            positives=positives,
            seen_offsets=seen[0],
            seen_items=seen[1],
            positive_offsets=None if self.positive_offsets is None else offsets,
        )


def sample_candidates(
    split: Split, part: Part = "test", *, num_negatives: int = 100, seed: int = 0
) -> Candidates:
    """Draw the ranking candidates of He et al. (2017), section 4.1: 100 items the user never interacted with.

    The items are distinct, uniform over those with which the user has no interaction in *any* part of
    the split. A user with fewer such items gets all of them, padded with ``-1``.

    Args:
        split: what `leave_one_out` returned.
        part: whose held-out items are ranked, ``"test"`` or ``"validation"``.
        num_negatives: how many items to draw per user.
        seed: same seed, same candidates; the two parts draw different ones.

    Returns:
        `Candidates`, in the order of the part's users.

    Raises:
        TypeError: if ``split`` is something else.
        ValueError: if the part is empty, or ``num_negatives`` is no whole number of at least one.

    Example::

        >>> from ncf import Interactions, leave_one_out, sample_candidates
        >>> interactions = Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 3, 4])
        >>> candidates = sample_candidates(leave_one_out(interactions), num_negatives=3)
        >>> candidates.positives, candidates.negatives.sort().values
        (tensor([2, 4]), tensor([[-1,  3,  4],
                [-1,  0,  1]]))
    """
    num_negatives, seed = whole("num_negatives", num_negatives), whole("seed", seed, least=None)
    held_out = _held_out(split, part)
    if len(held_out.users.unique()) < len(held_out):
        raise ValueError(
            f"the {part} set holds several interactions of a user: sampled candidates are for one held-out item per "
            "user, whole_catalogue(split) ranks several"
        )
    unseen = UnseenItems(*split.csr(), num_items=held_out.num_items)
    generator = torch.Generator("cpu").manual_seed((seed * 2 + (part == "validation")) % 2**64)
    negatives = unseen.sample_distinct(held_out.users, num_negatives, generator)
    return Candidates(
        held_out.users, held_out.items, negatives, split.fingerprint, _untested(split, held_out)
    )


def whole_catalogue(split: Split, part: Part = "test") -> Catalogue:
    """The exact ranking task: the held-out item among all items without an interaction of the user.

    Krichene & Rendle (KDD 2020) showed that sampled metrics need not agree with the exact ones.

    Args:
        split: what `leave_one_out` returned.
        part: whose held-out items are ranked, ``"test"`` or ``"validation"``.

    Returns:
        `Catalogue`; the seen items are the user's interactions in any part of the split.

    Raises:
        ValueError: if the part is empty.

    Example::

        >>> from ncf import Interactions, leave_one_out, whole_catalogue
        >>> interactions = Interactions.from_arrays([0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 3, 4])
        >>> whole_catalogue(leave_one_out(interactions)).seen_items
        tensor([0, 1, 2, 3])
    """
    held_out = _held_out(split, part)
    num_items = held_out.num_items
    users, counts = held_out.users.unique(return_counts=True)
    several = len(users) < len(held_out)
    if several:
        keys = sorted_keys(held_out.users * num_items + held_out.items)
        positives = keys % num_items
    else:
        users, positives, keys = held_out.users, held_out.items, held_out.users * num_items + held_out.items
    offsets, seen = select_lists(*split.csr(), users)
    rows = torch.repeat_interleave(offsets.diff())  # [S], place of each item's user
    ascending = keys if several else sorted_keys(keys)
    wanted = users[rows] * num_items + seen
    place = torch.searchsorted(ascending, wanted).clamp_(max=len(ascending) - 1)
    keep = ascending[place] != wanted
    return Catalogue(
        users,
        positives,
        num_items,
        lengths_to_offsets(torch.bincount(rows[keep], minlength=len(users))),
        seen[keep],
        split.fingerprint,
        lengths_to_offsets(counts) if several else None,
        _untested(split, held_out),
    )


def _digest(tensors: Mapping[str, Tensor], fingerprint: str | None) -> str:
    digest = hashlib.blake2b(repr(fingerprint).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(repr((name, tuple(tensors[name].shape))).encode())
        digest.update(tensors[name].cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _untested(split: Split, held_out: Interactions) -> int:
    """Number of trained users without a held-out item; where whole users are held out, that is as it should be."""
    if split.history is not None:
        return 0
    trained, there = (part.users.bincount(minlength=part.num_users) > 0 for part in (split.train, held_out))
    return int((trained & ~there).sum())


def _held_out(split: Split, part: Part) -> Interactions:
    of_type("split", split, Split, "leave_one_out(interactions) makes one")
    check_choice("part", part, ("validation", "test"))
    held_out: Interactions | None = getattr(split, part)
    if held_out is None or len(held_out) == 0:
        raise ValueError(
            f"the {part} part of the split is empty: no user has enough interactions to hold one out"
        )
    return held_out
