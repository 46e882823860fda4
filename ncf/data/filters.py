"""Which rows are kept: each pair once, and only users and items with enough of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sorted_keys(keys: Tensor) -> Tensor:
    """Keys, ``[N]``, ascending.

    Example::

        >>> import torch
        >>> from ncf.data.filters import sorted_keys
        >>> sorted_keys(torch.tensor([7, 3, 5]))
        tensor([3, 5, 7])
    """
    if keys.device.type == "cpu":  # NumPy sorts with vector instructions, five times as fast
        return torch.from_numpy(np.sort(keys.numpy()))
    return keys.sort().values


def latest(pairs: Tensor, times: Tensor | None) -> Tensor | None:
    """The row of each distinct pair's latest occurrence, in file order; ``None`` if no pair occurs twice.

    Example::

        >>> import torch
        >>> from ncf.data.filters import latest
        >>> latest(torch.tensor([70, 80, 70]), times=torch.tensor([2, 0, 1]))
        tensor([0, 1])
    """
    keys = sorted_keys(pairs)
    repeated = keys[1:][keys[1:] == keys[:-1]].unique_consecutive()
    if len(repeated) == 0:
        return None
    place = torch.searchsorted(repeated, pairs).clamp_(max=len(repeated) - 1)
    among = repeated[place] == pairs  # only these rows need an order
    rows = among.nonzero()[:, 0]
    if times is not None:
        rows = rows[times[rows].argsort(stable=True)]
    rows = rows[pairs[rows].argsort(stable=True)]  # by pair, then time, then file order
    last = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    last[:-1] = pairs[rows[1:]] != pairs[rows[:-1]]
    keep = ~among
    keep[rows[last]] = True
    kept: Tensor = keep.nonzero()[:, 0]
    return kept


def core(users: Tensor, items: Tensor, rows: Tensor, min_user_count: int, min_item_count: int) -> Tensor:
    """Rows left when users and items with too few rows are taken out until none is.

    Example::

        >>> import torch
        >>> from ncf.data.filters import core
        >>> users, items = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 1])
        >>> core(users, items, torch.arange(5), min_user_count=2, min_item_count=2)
        tensor([0, 1, 2, 3])
    """
    while len(rows):
        enough = (users[rows].bincount()[users[rows]] >= min_user_count) & (
            items[rows].bincount()[items[rows]] >= min_item_count
        )
        if bool(enough.all()):
            break
        rows = rows[enough]
    return rows
