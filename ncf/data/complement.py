"""The items a user has *not* touched, indexed without listing them."""

from __future__ import annotations

import torch
from torch import Tensor

_DRAWS_PER_BLOCK = 1 << 16


class Complement:
    """For every user the items outside a given set, addressed by rank; exact, without rejection.

    With a user's items sorted, p₀ < p₁ < …, the r-th item that is not among them is
    r + #{k : pₖ − k ≤ r}. The shifted items pₖ − k of all users, each raised by its user's own multiple,
    form one ascending array, so one `torch.searchsorted` answers any number of users at once.

    With `weights` an item is an interval of that length rather than of length one, and a draw picks
    items in proportion to their weight; the weights are integers so that this too is exact.

    Args:
        offsets: where each user's items start, ``[num_users + 1]``, int64.
        items: the items to stay out of, ascending within each user, ``[N]``, int64.
        num_items: size of the catalogue.
        weights: a non-negative integer per item, ``[num_items]``, int64; all one by default.

    Raises:
        ValueError: if the weights are too large for 64-bit arithmetic.

    Example::

        >>> import torch
        >>> from ncf.data.complement import Complement
        >>> untouched = Complement(torch.tensor([0, 2]), torch.tensor([1, 3]), num_items=5)  # one user, of two items
        >>> untouched.at(torch.tensor([0]), torch.tensor([[0, 1, 2]]))
        tensor([[0, 2, 4]])
    """

    def __init__(
        self, offsets: Tensor, items: Tensor, *, num_items: int, weights: Tensor | None = None
    ) -> None:
        device = items.device
        counts = offsets.diff()
        users = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int64, device=device), counts)
        self.num_items = num_items
        self.offsets = offsets
        self._ends: Tensor | None = None
        self._skipped: Tensor | None = None
        if weights is None:
            total = num_items
            position = torch.arange(len(items), dtype=torch.int64, device=device) - offsets[users]
            shifted = items - position
            self.sizes = num_items - counts  # [num_users], how much there is to draw from
        else:
            self._ends = weights.cumsum(0)  # [num_items]
            total = int(self._ends[-1])
            own = weights[items]
            running = own.cumsum(0)
            before = torch.cat([running.new_zeros(1), running])  # [N + 1]
            skipped = before[:-1] - before[offsets[users]]  # weight of the user's items before this one
            shifted = self._ends[items] - own - skipped
            self._skipped = before
            self.sizes = total - (before[offsets[1:]] - before[offsets[:-1]])
        self._stride = total + 1
        if len(counts) * self._stride >= 2**63:
            raise ValueError(
                f"{len(counts)} users with a total weight of {total} do not fit 64-bit keys: scale the weights down"
            )
        self._keys = shifted + users * self._stride
        if len(counts) * self._stride < 2**31:  # half the memory traffic of the search
            self._keys = self._keys.to(torch.int32)

    def at(self, users: Tensor, ranks: Tensor) -> Tensor:
        """The item at position ``ranks`` among those outside the user's set.

        Args:
            users: ``[B]``, int64.
            ranks: ``[B, n]``, int64, each in ``[0, sizes[user])``.

        Returns:
            Items, ``[B, n]``, int64.
        """
        queries = (users * self._stride)[:, None] + ranks  # [B, n]
        found = torch.searchsorted(self._keys, queries.to(self._keys.dtype), right=True)
        if self._ends is None:
            return ranks + (found - self.offsets[users][:, None])
        assert self._skipped is not None
        start = self._skipped[self.offsets[users]][:, None]
        place = ranks + self._skipped[found] - start  # position on the axis of all weights
        return torch.searchsorted(self._ends, place, right=True)

    def draw(self, users: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """``num`` independent draws per user, with replacement.

        Args:
            users: ``[B]``, int64.
            num: draws per user.
            generator: owner of the randomness, on the device of the items.

        Returns:
            Items, ``[B, num]``; ``-1`` for a user with nothing left to draw.
        """
        items = torch.empty(len(users), num, dtype=torch.int64, device=users.device)
        # In blocks: the five intermediate results of a whole epoch would take 40 bytes a draw.
        rows = max(1, _DRAWS_PER_BLOCK // max(1, num))
        for some, out in zip(users.split(rows), items.split(rows), strict=True):
            sizes = self.sizes[some]  # [b]
            uniform = torch.rand(out.shape, dtype=torch.float64, generator=generator, device=users.device)
            ranks = uniform.mul_(sizes[:, None]).to(torch.int64)  # 53 random bits, rounded towards zero
            out.copy_(self.at(some, ranks))
            out.masked_fill_((sizes == 0)[:, None], -1)
        return items

    def draw_distinct(self, users: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """``num`` different items per user, every subset equally likely (Floyd's algorithm, Bentley 1987).

        Args:
            users: ``[B]``, int64.
            num: items per user.
            generator: owner of the randomness.

        Returns:
            Items, ``[B, num]``; a user with fewer to offer is padded with ``-1`` at the end.
        """
        if self._ends is not None:
            raise ValueError("distinct draws are uniform: build the complement without weights")
        sizes = self.sizes[users]  # [B]
        picked = torch.full((len(users), num), -1, dtype=torch.int64, device=users.device)
        taken = sizes.clamp(max=num)
        for step in range(num):
            top = sizes - taken + step  # the subset of [0, top] grows by one element
            uniform = torch.rand(len(users), dtype=torch.float64, generator=generator, device=users.device)
            rank = (uniform * (top + 1)).to(torch.int64)
            repeated = (picked[:, :step] == rank[:, None]).any(1)
            picked[:, step] = torch.where(step < taken, torch.where(repeated, top, rank), -1)
        return torch.where(picked < 0, -1, self.at(users, picked.clamp(min=0)))
