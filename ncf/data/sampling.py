"""Draws of items that users have not interacted with: training negatives, and distinct items to rank among."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ncf.data.interactions import Interactions
from ncf.utils.checks import check_choice, check_ids, whole

_TOTAL_WEIGHT = 2**31  # of the popularity distribution: fine for any catalogue, small enough for 64-bit keys
_DRAWS_PER_BLOCK = 1 << 16


class NegativeSampler:
    """Draws unobserved items as negative examples (He et al. 2017, section 3.1).

    A negative is never an item of the user's *training* interactions. The held-out items may be drawn: a
    model must not learn from what is held out. Draws are independent, with replacement.

    Args:
        train: the training interactions.
        law: ``"uniform"`` over the items the user has not interacted with, or ``"popularity"``: in proportion to
            (number of interactions)**power among them.
        power: exponent of the popularity distribution; word2vec's 0.75 by default.
        counts: numbers of interactions for ``"popularity"``, ``[num_items]``; by default counted in ``train``. In
            distributed training pass the counts over all processes.
        seed: of the sampler's own generator.
        device: where to draw; the CPU by default.

    Raises:
        ValueError: for an unknown law, a power that is not finite, or counts that are not one finite number of at
            least zero for each item, some above zero.

    Example::

        >>> import torch
        >>> from ncf import Interactions, NegativeSampler
        >>> train = Interactions.from_arrays([0, 0, 1], [0, 1, 2])
        >>> NegativeSampler(train, seed=1).sample(torch.tensor([0, 0]), 2)  # only item 2 is left to user 0
        tensor([[2, 2],
                [2, 2]])
    """

    def __init__(
        self,
        train: Interactions,
        *,
        law: Literal["uniform", "popularity"] = "uniform",
        power: float = 0.75,
        counts: Tensor | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        device = torch.device("cpu" if device is None else device)
        check_choice("law", law, ("uniform", "popularity"))
        offsets, items = (tensor.to(device) for tensor in train.csr())
        weights = None
        if law == "popularity":
            counts = train.item_counts() if counts is None else counts
            weights = _weights(counts.cpu().to(torch.float64), power, train.num_items).to(device)
        self.law = law
        self.num_items = train.num_items
        self._unseen = UnseenItems(offsets, items, num_items=train.num_items, weights=weights)
        self.generator = torch.Generator(device).manual_seed(whole("seed", seed, least=None) % 2**64)

    @property
    def available(self) -> Tensor:
        """True for a user who has any item left to draw, ``[num_users]``, bool."""
        return self._unseen.sizes > 0

    def __repr__(self) -> str:
        return f"NegativeSampler({len(self._unseen.sizes)} users, {self.law})"

    def sample(
        self,
        users: Tensor,
        num: int = 4,
        *,
        out: Tensor | None = None,
        draw: Callable[..., None] | None = None,
    ) -> Tensor:
        """Draw ``num`` negatives for each of ``users``; fastest when the users come in ascending order.

        Args:
            users: ``[B]``, int64.
            num: negatives per entry.
            out: where to write the items, ``[B, num]``, of any type of whole numbers that holds them.
            draw: a faster loop at the same numbers, `ncf.kernels.native.draw_unseen`, for an int32 ``out`` on a CPU.

        Returns:
            Items, ``[B, num]``, int64, or ``out``; ``-1`` for a user who has interacted with everything.

        Raises:
            ValueError: if a user is out of range, ``num`` is negative, or ``out`` has another shape.
        """
        if not isinstance(users, Tensor) or users.dtype != torch.int64 or users.dim() != 1:
            got = f"{users.dtype} {tuple(users.shape)}" if isinstance(users, Tensor) else type(users).__name__
            raise ValueError(f"users must be an int64 tensor [B], got {got}")
        num = whole("num", num, least=0)
        check_ids(users, "users", len(self._unseen.sizes), "num_users")
        if out is not None and out.shape != (len(users), num):
            raise ValueError(f"out has shape {tuple(out.shape)}: it must have {(len(users), num)}")
        return self._unseen.sample(users, num, self.generator, out, draw)

    def shared(self, batches: int, num: int) -> Tensor:
        """Draw ``num`` items for each of some batches, seen or not, ``[batches, num]``, int64."""
        shape, device = (batches, num), self.generator.device
        total = self._unseen.total
        ranks = torch.randint(total, shape, generator=self.generator, dtype=torch.int64, device=device)
        return self._unseen.item_of(ranks)

    def log_expected(self, num: int, shared: bool = False) -> tuple[Tensor | None, Tensor]:
        """Logarithm of how often an item is expected in ``num`` draws for a user: of items, less of users.

        Args:
            num: draws.
            shared: draw regardless of seen items, as `shared` does.

        Returns:
            ``[num_items]``, float32, or ``None`` for the uniform distribution, and ``[num_users]``.
        """
        sizes = self._unseen.sizes
        sizes = torch.full_like(sizes, self._unseen.total) if shared else sizes
        of_users = (sizes.double().clamp(min=1).log() - math.log(num)).to(torch.float32)
        weights = self._unseen.weights
        return None if weights is None else weights.double().clamp(min=1).log().to(torch.float32), of_users


def _weights(counts: Tensor, power: float, num_items: int) -> Tensor:
    """Whole weights in proportion to ``counts**power``, at least one where a count is above zero; ``[num_items]``."""
    if not math.isfinite(power):
        raise ValueError(f"power = {power}: give a finite number")
    if counts.shape != (num_items,):
        raise ValueError(f"counts has shape {tuple(counts.shape)}: give one for each of {num_items} items")
    wrong = ~((counts >= 0) & counts.isfinite())
    if bool(wrong.any()):
        item = int(wrong.nonzero()[0])
        raise ValueError(f"counts[{item}] = {float(counts[item])}: give finite numbers of at least zero")
    there = counts > 0
    if not bool(there.any()):
        raise ValueError("counts are all zero: there is nothing to draw")
    logs = counts[there].log() * power
    if not bool(logs.isfinite().all()):
        raise ValueError(f"power = {power} is too large for counts of up to {float(counts.max())}")
    mass = (logs - logs.max()).exp()  # in logarithms no power overflows
    weights = torch.zeros(num_items, dtype=torch.int64, device="cpu")
    weights[there] = (mass * (_TOTAL_WEIGHT / mass.sum())).ceil().to(torch.int64).clamp_(min=1)
    return weights


class UnseenItems:
    """For every user the items outside a given set, addressed by rank; exact, without rejection.

    With a user's items sorted, p₀ < p₁ < …, the r-th item outside the set is r + #{k : pₖ − k ≤ r}. The shifted
    items pₖ − k of all users, each raised by its user's own multiple, form one ascending array, so one
    `torch.searchsorted` answers any number of users at once.

    With ``weights`` an item is an interval of that length rather than of length one, and a draw picks
    items in proportion to their weight; the weights are integers so that this too is exact.

    Args:
        offsets: where each user's items start, ``[num_users + 1]``, int64.
        items: the items to stay out of, ascending within each user, ``[N]``, int64.
        num_items: size of the catalogue.
        weights: a non-negative integer per item, ``[num_items]``, int64; all one by default.

    Raises:
        ValueError: if the weights are too large for 64-bit arithmetic.
    """

    def __init__(
        self, offsets: Tensor, items: Tensor, *, num_items: int, weights: Tensor | None = None
    ) -> None:
        device = items.device
        counts = offsets.diff()
        numbers = torch.arange(len(counts), dtype=torch.int64, device=device)
        self.num_items = num_items
        self.offsets = offsets
        self._ends: Tensor | None = None
        self._skipped: Tensor | None = None
        if weights is None:
            total = num_items
            lift = offsets[:-1]  # [num_users], so that a user's first item stays in its place
            self.sizes = num_items - counts  # [num_users], how much there is to draw from
        else:
            self._ends = weights.cumsum(0)  # [num_items]
            total = int(self._ends[-1])
            running = weights[items].cumsum(0)
            before = torch.cat([running.new_zeros(1), running])  # [N + 1]
            lift = before[offsets[:-1]]  # [num_users], of the user's own items alone
            self._skipped = before
            self.sizes = total - (before[offsets[1:]] - before[offsets[:-1]])
        self.weights, self.total = weights, total
        self._stride = total + 1
        if len(counts) * self._stride >= 2**63:
            raise ValueError(
                f"{len(counts)} users with a total weight of {total} do not fit 64-bit keys: scale the weights down"
            )
        self._items = items
        self._lift = lift + numbers * self._stride  # [num_users], from a shifted item to its key

    @cached_property
    def _keys(self) -> Tensor:
        """The shifted items of all users, ``[N]``, ascending."""
        if self._ends is None:
            shifted = self._items - torch.arange(
                len(self._items), dtype=torch.int64, device=self._items.device
            )
        else:
            assert self._skipped is not None
            assert self.weights is not None
            place = self._ends[self._items] - self.weights[self._items]
            shifted = place - self._skipped[:-1]  # less the weight of all items before this one
        keys = shifted.add_(self._lift.repeat_interleave(self.offsets.diff()))
        # Half the memory traffic of the search.
        return keys.to(torch.int32) if len(self.sizes) * self._stride < 2**31 else keys

    def item_of(self, ranks: Tensor) -> Tensor:
        """The item at a place among all, seen or not: ``[...]``, each in ``[0, total)``."""
        return ranks if self._ends is None else torch.searchsorted(self._ends, ranks, right=True)

    def nth(self, users: Tensor, ranks: Tensor) -> Tensor:
        """The item at position ``ranks`` among those outside the user's set.

        Args:
            users: ``[B]``, int64.
            ranks: ``[B, n]``, int64, each in ``[0, sizes[user])``.

        Returns:
            Items, ``[B, n]``, int64.
        """
        found = self._search(users, ranks)  # [B, n]
        if self._ends is None:
            return ranks + (found - self.offsets[users][:, None])
        assert self._skipped is not None
        start = self._skipped[self.offsets[users]][:, None]
        place = ranks + self._skipped[found] - start  # position on the axis of all weights
        return torch.searchsorted(self._ends, place, right=True)

    def _search(self, users: Tensor, ranks: Tensor) -> Tensor:
        """The first place in the keys of all users that is above a user's rank, ``[B, n]``."""
        keys, start, low = self._keys, 0, 0
        if users.is_cpu and len(users):  # the keys of the users of a block alone stay in the cache
            low, high = (int(end) for end in users.aminmax())
            start, end = int(self.offsets[low]), int(self.offsets[high + 1])
            keys = keys[start:end]
            if (high + 1 - low) * self._stride < 2**31 and end - start <= 4 * ranks.numel():
                keys = (keys - low * self._stride).to(torch.int32)
            else:
                low = 0
        queries = ((users - low) * self._stride)[:, None] + ranks
        return torch.searchsorted(keys, queries.to(keys.dtype), right=True).add_(start)

    def sample(
        self,
        users: Tensor,
        num: int,
        generator: torch.Generator,
        out: Tensor | None = None,
        draw: Callable[..., None] | None = None,
    ) -> Tensor:
        """Draw ``num`` items per user independently, with replacement.

        Args:
            users: ``[B]``, int64.
            num: draws per user.
            generator: owner of the randomness, on the device of the items.
            out: where to write the items, ``[B, num]``.
            draw: see `NegativeSampler.sample`.

        Returns:
            Items, ``[B, num]``; ``-1`` for a user with nothing left to draw.
        """
        items = torch.empty(len(users), num, dtype=torch.int64, device=users.device) if out is None else out
        # In blocks: the five intermediate results of a whole epoch would take 40 bytes a draw.
        rows = max(1, _DRAWS_PER_BLOCK // max(1, num))
        for some, block in zip(users.split(rows), items.split(rows), strict=True):
            uniform = torch.rand(block.shape, dtype=torch.float64, generator=generator, device=users.device)
            if draw is not None and self.weights is None:
                draw(self._items, self.offsets, self.num_items, some, uniform, block)
                continue
            sizes = self.sizes[some]  # [b]
            ranks = uniform.mul_(sizes[:, None]).to(torch.int64)  # 53 random bits, rounded towards zero
            block.copy_(self.nth(some, ranks))
            block.masked_fill_((sizes == 0)[:, None], -1)
        return items

    def sample_distinct(self, users: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Draw ``num`` different items per user, every subset equally likely; on the CPU.

        A rank that was drawn before is drawn again. The subset is uniform, for renaming the items would change
        nothing in this. Of a user with few items left, all ranks are shuffled instead.

        Args:
            users: ``[B]``, int64.
            num: items per user.
            generator: owner of the randomness.

        Returns:
            Items, ``[B, num]``; a user with fewer left is padded with ``-1`` at the end.
        """
        if self._ends is not None:
            raise ValueError("distinct draws are uniform: build UnseenItems without weights")
        items = torch.full((len(users), num), -1, dtype=torch.int64, device="cpu")
        if len(users) == 0:
            return items
        width = min(num, int(self.sizes[users].max()))
        drawn = items[:, :width]  # ranks at first
        rows = max(1, _DRAWS_PER_BLOCK // max(1, width))
        for some, out in zip(users.split(rows), drawn.split(rows), strict=True):
            sizes = self.sizes[some]  # [b]
            ranks = torch.rand(len(some), width, dtype=torch.float64, generator=generator, device="cpu")
            ranks = ranks.mul_(sizes[:, None]).to(torch.int64)  # [b, width]
            few = sizes < 2 * width
            if bool(few.any()):
                ranks[few] = _shuffled(sizes[few], width, generator)
            _draw_again(ranks, sizes, (~few).nonzero()[:, 0], generator)
            out.copy_(ranks)
        order = users.argsort(stable=True)  # the items of neighbours lie side by side
        for some in order.split(rows):
            ranks = drawn.index_select(0, some)
            drawn.index_copy_(0, some, self._nth_in_order(users[some], ranks))
        return items

    def _nth_in_order(self, users: Tensor, ranks: Tensor) -> Tensor:
        """`nth` of each user's ranks, ``[B, n]``, sought in ascending order, which costs a third; -1 stays."""
        low, high = int(users[0]), int(users[-1])
        start, end = int(self.offsets[low]), int(self.offsets[high + 1])
        if (high + 1 - low) * self._stride >= 2**31 or end - start > 4 * ranks.numel():
            return torch.where(ranks < 0, -1, self.nth(users, ranks.clamp(min=0)))
        bits = max(1, (ranks.shape[1] - 1).bit_length())
        packed = _in_order(ranks, bits)  # [B, n]
        ascending = (packed >> bits).astype(np.int32)
        base = self._lift[low : high + 1] - (start + low * self._stride)
        keys = np.repeat(base.numpy().astype(np.int32), self.offsets[low : high + 2].diff().numpy())
        keys -= np.arange(end - start, dtype=np.int32)
        keys += self._items[start:end].numpy().astype(np.int32)
        queries = ascending + ((users - low) * self._stride).numpy().astype(np.int32)[:, None]
        found = np.searchsorted(keys, queries.ravel(), side="right").reshape(queries.shape)
        found += ascending - (self.offsets[users] - start).numpy()[:, None]
        found[ascending < 0] = -1
        packed &= (1 << bits) - 1  # columns
        packed += np.arange(len(packed))[:, None] * packed.shape[1]
        drawn = torch.empty_like(ranks)
        drawn.numpy().ravel()[packed.ravel()] = found.ravel()
        return drawn


def _in_order(ranks: Tensor, bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Each row's ``rank << bits | column``, ascending: NumPy sorts numbers with vector instructions."""
    columns = torch.arange(ranks.shape[1], dtype=torch.int64, device="cpu")
    packed: np.ndarray[Any, np.dtype[np.int64]] = ((ranks << bits) | columns).numpy()
    packed.sort(axis=1)
    return packed


def _shuffled(sizes: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """The first numbers of a random permutation of each ``range(size)``, ``[b, width]``, padded with -1."""
    columns = torch.arange(max(int(sizes.max()), width), dtype=torch.int64, device="cpu")
    keys = torch.rand(len(sizes), len(columns), dtype=torch.float64, generator=generator, device="cpu")
    keys[columns >= sizes[:, None]] = 2.0  # behind every other
    order = keys.argsort(dim=1)[:, :width]
    return torch.where(columns[:width] < sizes[:, None], order, -1)


def _draw_again(ranks: Tensor, sizes: Tensor, rows: Tensor, generator: torch.Generator) -> None:
    """Replace, in place, each number of ``ranks[rows]`` that stands earlier in its row, until none does."""
    bits = max(1, (ranks.shape[1] - 1).bit_length())
    while len(rows):
        packed = _in_order(ranks[rows], bits)
        ascending = packed >> bits
        twice = ascending[:, 1:] == ascending[:, :-1]
        again = np.zeros(packed.shape, bool)
        row, place = twice.nonzero()
        again[row, packed[row, place + 1] & ((1 << bits) - 1)] = True  # of equal ranks the first column stays
        row, column = (torch.from_numpy(side) for side in again.nonzero())
        uniform = torch.rand(len(row), dtype=torch.float64, generator=generator, device="cpu")
        ranks[rows[row], column] = (uniform * sizes[rows[row]]).to(torch.int64)
        rows = rows[row.unique_consecutive()]
