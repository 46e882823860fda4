"""Row-wise Adagrad's state of a table that is now cut into other columns than when it was saved."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_FUSED = re.compile(r"fused\.(.+)\.momentum1")

Columns = tuple[tuple[int, int], ...]  # (first column, columns) of each part that a table is cut into
Shape = tuple[tuple[int, ...], str]  # of the whole tensor, and its dtype


def optimizer_of(name: str) -> tuple[str, str]:
    """The table whose optimizer's state a tensor of a checkpoint is, and the tensor that this table is.

    Returns:
        Two names, which are empty for a tensor that is no such state.

    Example::

        >>> from ncf.distributed.rowwise_adagrad import optimizer_of
        >>> optimizer_of("fused.user_gmf.momentum1")
        ('user_gmf', 'model.embeddings.ebc.embedding_bags.user_gmf.weight')
    """
    match = _FUSED.fullmatch(name)
    return (match[1], f"model.embeddings.ebc.embedding_bags.{match[1]}.weight") if match else ("", "")


def recut(
    wanted: Mapping[str, tuple[Shape, Columns]], had: Mapping[str, tuple[Shape, Columns]]
) -> dict[str, tuple[Columns, Columns]]:
    """Which vectors of row-wise Adagrad belong to tables that are now cut into other columns.

    Args:
        wanted: shape and cut of each tensor that is asked for, by name.
        had: those of each that is stored.

    Returns:
        The old and the new cut of their tables, by the vectors' names.

    Example::

        >>> from ncf.distributed.rowwise_adagrad import recut
        >>> table, rows = "model.embeddings.ebc.embedding_bags.user.weight", "fused.user.momentum1"
        >>> whole, halves = ((0, 8),), ((0, 4), (4, 4))
        >>> wanted = {table: (((3, 8), "float32"), halves), rows: (((6,), "float32"), ())}
        >>> had = {table: (((3, 8), "float32"), whole), rows: (((3,), "float32"), ())}
        >>> recut(wanted, had)
        {'fused.user.momentum1': (((0, 8),), ((0, 4), (4, 4)))}
    """
    found = {}
    for name in wanted.keys() & had.keys():
        _, weight = optimizer_of(name)
        if weight not in wanted or weight not in had:
            continue
        ((now, _), _), ((then, _), _) = wanted[name], had[name]
        (table, new), (_, old) = wanted[weight], had[weight]
        rows = table[0][0]
        if new != old and now == (rows * len(new),) and then == (rows * len(old),):
            found[name] = old, new
    return found


def mean_over_columns(sums: Tensor, old: Columns, new: Columns, offset: int, length: int) -> Tensor:
    """Row-wise Adagrad's numbers for another cut of the columns: see `Checkpoint.read`.

    Args:
        sums: ``[P·R]``, the old parts' numbers, each part's R rows after those of the part before.
        old: the P old parts of the columns.
        new: the new ones.
        offset: the first wanted position in the vector of the new parts' numbers.
        length: how many are wanted, all of one part.

    Returns:
        ``[length]``, in float64.

    Example::

        >>> import torch
        >>> from ncf.distributed.rowwise_adagrad import mean_over_columns
        >>> halves, whole = ((0, 4), (4, 4)), ((0, 8),)
        >>> mean_over_columns(torch.tensor([1.0, 2.0, 3.0, 6.0]), halves, whole, offset=0, length=2)
        tensor([2., 4.], dtype=torch.float64)
    """
    by_part = sums.view(len(old), -1)  # [P, R]
    part, row = divmod(offset, by_part.shape[1])
    first, width = new[part]
    mean = torch.zeros(length, dtype=torch.float64, device="cpu")
    for (old_first, old_width), values in zip(old, by_part, strict=True):
        overlap = min(first + width, old_first + old_width) - max(first, old_first)
        if overlap > 0:
            mean += overlap / width * values[row : row + length].double()
    return mean
