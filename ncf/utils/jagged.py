"""Lists of different lengths in one tensor, one behind the other: list n is ``values[offsets[n] : offsets[n + 1]]``."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_to_offsets(counts: Tensor) -> Tensor:
    """Return the starts of lists, and the end of the last one.

    Args:
        counts: lengths of the lists, ``[L]``, int64.

    Returns:
        ``[L + 1]``, int64.
    """
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def select_lists(offsets: Tensor, values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the lists, in the given order; one may be chosen more than once.

    Args:
        offsets: ``[L + 1]``, int64.
        values: ``[N]``.
        chosen: numbers of lists, ``[R]``, int64.

    Returns:
        Offsets, ``[R + 1]``, and values of the chosen lists.
    """
    if len(chosen) == 1:  # one list lies in one piece: nothing is copied
        bounds = offsets[int(chosen) :][:2]
        start, end = bounds.tolist()
        return bounds - start, values[start:end]
    taken, places = places_of_lists(offsets, chosen)
    return taken, values[places]


def places_of_lists(offsets: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets, ``[R + 1]``, of the chosen lists, and the places of their values; see `select_lists`."""
    starts = offsets[chosen]
    counts = offsets[chosen + 1] - starts
    taken = lengths_to_offsets(counts)
    moved = (starts - taken[:-1]).repeat_interleave(counts)  # by how much each value moves
    return taken, torch.arange(len(moved), dtype=torch.int64, device=moved.device).add_(moved)


def check_lists(name: str, offsets: Tensor, values: Tensor, count: int, below: int) -> None:
    """Raise a ValueError unless there are ``count`` lists of numbers from 0 to ``below - 1``."""
    whole = offsets.dtype == torch.int64 and offsets.shape == (count + 1,) and values.dim() == 1
    if not whole or int(offsets[0]) or int(offsets[-1]) != len(values) or bool((offsets.diff() < 0).any()):
        raise ValueError(f"{name} is not {count} lists: give offsets [{count + 1}], int64, and values [N]")
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= below):
        raise ValueError(f"{name} holds a number outside 0 to {below - 1}: it is of other data")
