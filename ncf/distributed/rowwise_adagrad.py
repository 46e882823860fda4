"""Row-wise Adagrad's state of a table that is now cut into other columns than when it was saved."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Row-wise Adagrad's sum, and the second moment of partial row-wise AdamW; both are means over a row of squares.
_FUSED = re.compile(r"fused\.(.+)\.(?:momentum1|exp_avg_sq)")

ColumnSplits = tuple[tuple[int, int], ...]  # (first column, columns) of each part that a table is cut into
Shape = tuple[tuple[int, ...], str]  # of the whole tensor, and its dtype


def table_of_state(name: str) -> tuple[str, str]:
    """Map the name of an optimizer's state to the name of its table, and to the name of the table's weight.

    Returns:
        Two names, both empty if the tensor is no state of an optimizer.
    """
    match = _FUSED.fullmatch(name)
    return (match[1], f"model.embeddings.ebc.embedding_bags.{match[1]}.weight") if match else ("", "")


def changed_column_splits(
    wanted: Mapping[str, tuple[Shape, ColumnSplits]], had: Mapping[str, tuple[Shape, ColumnSplits]]
) -> dict[str, tuple[ColumnSplits, ColumnSplits]]:
    """Return the vectors of row-wise Adagrad whose tables are now split into other columns.

    Args:
        wanted: shape and cut of each tensor to read, by name.
        had: shape and cut of each stored tensor.

    Returns:
        The old and the new cut of their tables, by the vectors' names.
    """
    found = {}
    for name in wanted.keys() & had.keys():
        _, weight = table_of_state(name)
        if weight not in wanted or weight not in had:
            continue
        ((now, _), _), ((then, _), _) = wanted[name], had[name]
        (table, new), (_, old) = wanted[weight], had[weight]
        rows = table[0][0]
        if new != old and now == (rows * len(new),) and then == (rows * len(old),):
            found[name] = old, new
    return found


def average_over_columns(
    sums: Tensor, old: ColumnSplits, new: ColumnSplits, offset: int, length: int
) -> Tensor:
    """Row-wise Adagrad's numbers for another cut of the columns: see `Checkpoint.read`.

    Args:
        sums: ``[P·R]``, the old parts' numbers, each part's R rows after those of the part before.
        old: the P old parts of the columns.
        new: the new ones.
        offset: the first wanted position in the vector of the new parts' numbers.
        length: how many are wanted, all of one part.

    Returns:
        ``[length]``, in float64.
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
