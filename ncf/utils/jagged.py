"""Lists of different lengths in one tensor, one behind the other: list n is ``values[offsets[n] : offsets[n + 1]]``."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets_of(counts: Tensor) -> Tensor:
    """Where lists start, and where the last one ends.

    Args:
        counts: lengths of the lists, ``[L]``, int64.

    Returns:
        ``[L + 1]``, int64.

    Example::

        >>> import torch
        >>> from ncf.utils.jagged import offsets_of
        >>> offsets_of(torch.tensor([2, 0, 3]))
        tensor([0, 2, 2, 5])
    """
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def take_lists(offsets: Tensor, values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the lists, in the given order; one may be chosen more than once.

    Args:
        offsets: ``[L + 1]``, int64.
        values: ``[N]``.
        chosen: numbers of lists, ``[R]``, int64.

    Returns:
        Offsets, ``[R + 1]``, and values of the chosen lists.

    Example::

        >>> import torch
        >>> from ncf.utils.jagged import take_lists
        >>> take_lists(torch.tensor([0, 2, 2, 5]), torch.tensor([7, 8, 4, 5, 6]), torch.tensor([2, 1, 0]))
        (tensor([0, 3, 3, 5]), tensor([4, 5, 6, 7, 8]))
    """
    counts = offsets.diff()[chosen]
    taken = offsets_of(counts)
    moved = (offsets[chosen] - taken[:-1]).repeat_interleave(counts)  # by how much each value moves
    return taken, values[torch.arange(len(moved), device=moved.device) + moved]
